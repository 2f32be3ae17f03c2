"""`rollmatch report`: one HTML file about one run or several, which opens without a network.

`command` the arguments; `page` the file; `charts` figures as plotly's JSON, `figures` what they share; `timeline` who
was busy when; `samples` the best and the worst rollouts. What the numbers say in words is `deploy.health_rules`.
"""
