"""Forms of language data: how plain texts, prompts with completions and chats become tokens that are learnt."""
