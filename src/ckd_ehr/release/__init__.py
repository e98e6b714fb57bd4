"""From a run's student to a bundle: graphs, gates, and a folder that can be checked."""
