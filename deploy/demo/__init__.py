"""The demo: drawn scenes, the tiny Qwen3-VL that reads them, and the script that made it."""
