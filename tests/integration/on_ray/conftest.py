"""One Ray for the modules here."""

from tests.fault.replica_cluster import local_ray  # noqa: F401 - a fixture
