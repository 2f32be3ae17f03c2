"""What crosses a process, and every decision that is arithmetic.

Only numpy, scipy, pycocotools and pydantic are imported here: the package loads in well under half a second on a
laptop without torch, ray or vllm.

One word per idea:

- *bin*      coordinate on the norm1000 grid, 0..999
- *shape*    geometry type plus flat bins
- *record*   one line of the data set: image reference plus ground-truth objects
- *request*  one rollout that is owed: a record in an epoch
- *rollout*  the tokens that the current policy answered
- *prefix*   the part of a rollout that is kept
- *tail*     what is appended: the missing ground truth, the closing brace, the end-of-turn token
- *segment*  one teacher-forced row: prompt + prefix + tail
- *pack*     several segments in one padding-free row
- *window*   `effective_batch_size` rollouts, trained for `m_steps` optimizer steps
- *version*  a published set of policy weights; 0 is the start checkpoint
"""
