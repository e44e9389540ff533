"""What a study keeps between its notebooks: records of what each one did, and the code that artefacts depend on.

Takes the names, facts and files of the stages above; gives them back whole, or says in one sentence what is missing,
damaged or stale, and which notebook makes it again.
"""
