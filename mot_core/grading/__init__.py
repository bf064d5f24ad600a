"""From a completion to a verdict: parse the reasoning, extract the answer, ask a grader.

Invariant: failure is not a wrong answer. A verdict is correct, incorrect, unparseable (no answer in the agreed
form), truncated (cut at the limit or inside its reasoning) or grader_failed (the grader itself broke, took too long
or needed too much memory).

    extraction    the answer that a completion states
    answers       graders of our own: integers, choices, texts; bounded, safe in any process
    latex         a mathematical answer's text, brought into the form that the parser reads
    numeric       exact and sampled values of expressions
    equivalence   the grader `math`: Math-Verify, with its known mistakes caught on both sides; only in workers
    warden, pool  killable workers with a wall-clock and a memory limit
    stage, files  verdicts on a teacher's rationales, and on a file of answers
    judge         a second opinion from a model: prompt, reply, disagreement
"""
