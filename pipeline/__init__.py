"""The pipeline: from raw logs to a scored student.

Data sets, configuration, artifacts, stages, execution, reports.
"""
