"""Speed-ups: switches of `training.speed`, each of which trains the same model in less time or memory."""
