"""From YAML to objects; the only room that knows Hydra."""
