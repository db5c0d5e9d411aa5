"""Tasks: generated or loaded samples and their scores. The task files stand in the top-level ``tasks/`` folder."""

from questbench._paths import task_folders

__path__ += task_folders()
