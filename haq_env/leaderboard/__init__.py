"""The leaderboard: what is run, how runs are kept, and how submissions are executed again.

Tracks and cells (`protocol`) are run by engines (`engines`) into a store (`store`, `sweep`); what
was found becomes a submission of policies (`submission`), which is executed again (`verify`) before
it may stand in the table of its suite (`suites`, `standings`, `page`). A policy that is known there
can be had as a file (`best`).
"""
