"""The task plugins that come with loralight, each laid out as a plugin from anyone would be."""
