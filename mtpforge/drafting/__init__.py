"""One draft, from what is asked for to a folder that was judged: what `build`, `extract`, `demo` and Python share.

request      what is asked for, as names or opened checkpoints
refusals     what would end the job, asked before anything takes long
experts      which experts stay
deciding     decide(request): source, experts, calibration, plan
making       make(job): build, judge
serving      the server's command
capture      calibration inputs
remarks      what is said on the way
machine      doctor(): what is installed
calls        plan(), build(), extract(), ...: the functions of `import mtpforge`
"""
