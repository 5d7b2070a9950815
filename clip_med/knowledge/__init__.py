"""Medical knowledge: findings with names, descriptions and relations, and the prompts of classes."""
