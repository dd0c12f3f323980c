"""LoRA adapters: which linears have one, what PEFT's folders say of it, and an adapter in memory."""
