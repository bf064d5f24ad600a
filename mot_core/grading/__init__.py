"""From a completion to a verdict: parse the reasoning, extract the answer, ask a grader.

Invariant: failure is not a wrong answer. A verdict is correct, incorrect, unparseable (no answer in the agreed
form), truncated (cut at the limit or inside its reasoning) or grader_failed (the grader itself broke).
"""
