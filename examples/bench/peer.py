"""The same work by Hugging Face transformers: V2-Lite's exact shapes or, with --qwen, R1-Distill-Qwen-1.5B's, random weights, BF16, one GPU.

Prints prompt tokens/s at 4096 and decode tokens/s at batch 1 and 64 with 1,024 tokens of context. Run where PyTorch and
transformers are: python3 examples/bench/peer.py [layers of 27, of 28] [--qwen]
"""
import sys
import time

import torch
from transformers import DeepseekV2Config, DeepseekV2ForCausalLM, DynamicCache, Qwen2Config, Qwen2ForCausalLM

qwen = "--qwen" in sys.argv
words = [w for w in sys.argv[1:] if not w.startswith("--")]
layers = int(words[0]) if words else 28 if qwen else 27
config = Qwen2Config(
    vocab_size=151936, hidden_size=1536, intermediate_size=8960, num_hidden_layers=layers, num_attention_heads=12,
    num_key_value_heads=2, max_position_embeddings=131072, rope_theta=10000.0, rms_norm_eps=1e-6) if qwen else DeepseekV2Config(
    vocab_size=102400, hidden_size=2048, intermediate_size=10944, moe_intermediate_size=1408, num_hidden_layers=layers,
    first_k_dense_replace=1, num_attention_heads=16, num_key_value_heads=16, q_lora_rank=None, kv_lora_rank=512,
    qk_nope_head_dim=128, qk_rope_head_dim=64, v_head_dim=128, n_routed_experts=64, n_shared_experts=2,
    num_experts_per_tok=6, topk_method="greedy", n_group=1, topk_group=1, norm_topk_prob=False, routed_scaling_factor=1.0,
    max_position_embeddings=163840, rope_theta=10000.0, rms_norm_eps=1e-6)
torch.manual_seed(0)
torch.set_default_dtype(torch.bfloat16)
with torch.device("cuda"):
    model = (Qwen2ForCausalLM if qwen else DeepseekV2ForCausalLM)(config).eval()


@torch.inference_mode()
def prompt(n):
    best = 1e9
    ids = torch.randint(0, 102400, (1, n), device="cuda")
    for _ in range(3):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        model(ids, logits_to_keep=1)
        torch.cuda.synchronize()
        best = min(best, time.perf_counter() - begin)
    return n / best


@torch.inference_mode()
def decode(batch, context, steps=8):
    cache = DynamicCache(config=config)
    for at in range(0, context, 256):
        model(torch.randint(0, 102400, (batch, 256), device="cuda"), past_key_values=cache, logits_to_keep=1)
    ids, took = torch.randint(0, 102400, (batch, 1), device="cuda"), []
    for _ in range(steps):
        torch.cuda.synchronize()
        begin = time.perf_counter()
        ids = model(ids, past_key_values=cache, logits_to_keep=1).logits[:, -1].argmax(-1, keepdim=True)
        torch.cuda.synchronize()
        took.append(time.perf_counter() - begin)
    return batch / sorted(took)[len(took) // 2]


print(f"transformers, {layers} layers: prompt of 4096 {prompt(4096):.0f} tokens/s")
for batch in (1, 64):
    print(f"transformers, {layers} layers: decode {batch} x 1024 {decode(batch, 1024):.1f} tokens/s", flush=True)
