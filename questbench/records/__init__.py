"""Results on disk: the record schema, the run folders, the environment they were made in."""

from questbench.records.schema import ResultRecord, RunManifest

__all__ = ["ResultRecord", "RunManifest"]
