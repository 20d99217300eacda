"""Forms of language data: plain texts, prompts with completions, and chats become tokens that are learnt."""
