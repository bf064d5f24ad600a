"""Worker processes: forked from a clean parent that has torch loaded and runs no threads.

    flow process ──(JSON lines over pipes)── parent ──fork── one worker a job
      no torch, never forks                    select loop      runs steps, then exits

Invariant: no worker outlives the parent, and the parent does not outlive the flow process.
"""
