"""What drafting is worth on a live server: acceptance by its own counters, speed beside a server that does not draft.

    asked      what is measured, and where
    opening    both servers before the first request: what cannot be compared is refused
    server     an OpenAI-compatible server: its models, its metrics, how it was started
    answers    what comes back from a server, read with bounds
    apart      calls that may never come back
    counting   what it counted between two looks at its metrics
    drivers    who sends the load: the table of drivers
    corpus     prompts that come with mtpforge, or of a file
    streaming  the driver of those prompts
    vllm_bench the driver of SPEED-Bench and Spec-Bench
    measuring  the order of the load: warmed up, in slices, on, off, off, on
    slices     prompts between two looks at the counters
    cells      a cell of the table from its slices
    estimates  means with intervals
    depths     which depth would be fastest, at which number of requests at a time
    verdicts   what it comes to
    found      the result
    benching   all of it

Load goes to the addresses that the user names, and nowhere else.
"""
