"""From YAML to objects; the only package that knows Hydra."""
