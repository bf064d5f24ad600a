"""Who writes completions. A completer turns requests into completions; a stage batches, stores and resumes them.

To bring your own, give a teacher `completer: package.module:Class`, with the protocol of `base.Completer`.
"""
