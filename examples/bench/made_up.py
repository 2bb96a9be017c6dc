"""Makes a checkpoint with random weights, as many layers as asked for, where a disk has room: of V2-Lite's shapes (1.2 GB a layer), of V3's
(--v3: the first layer dense, 11.5 GB each of the others in f8, no MTP layer), or of R1-Distill-Qwen-1.5B's (--qwen; 28 layers, 3.6 GB).
usage: made_up.py FOLDER [layers] [--fp8] [--v3 | --qwen]    --fp8: weights in f8 with a scale for every 128 x 128, half the room"""
import json, math, os, sys
import torch
from safetensors.torch import save_file

fp8, qwen, v3 = ("--" + w in sys.argv for w in ("fp8", "qwen", "v3"))
words = [w for w in sys.argv[1:] if not w.startswith("--")]
folder, layers = words[0], int(words[1]) if len(words) > 1 else 8
os.makedirs(folder, exist_ok=True)
d, heads, rank, nope, rope, v, experts, moe, dense, vocab = 2048, 16, 512, 128, 64, 128, 64, 1408, 10944, 102400
config = dict(architectures=["DeepseekV2ForCausalLM"], model_type="deepseek_v2", hidden_size=d, intermediate_size=dense,
              moe_intermediate_size=moe, num_hidden_layers=layers, num_attention_heads=heads, num_key_value_heads=heads,
              n_shared_experts=2, n_routed_experts=experts, routed_scaling_factor=1.0, kv_lora_rank=rank, q_lora_rank=None,
              qk_rope_head_dim=rope, v_head_dim=v, qk_nope_head_dim=nope, topk_method="greedy", n_group=1, topk_group=1,
              num_experts_per_tok=6, moe_layer_freq=1, first_k_dense_replace=1, norm_topk_prob=False, scoring_func="softmax",
              hidden_act="silu", max_position_embeddings=8192, rms_norm_eps=1e-6, attention_bias=False, rope_theta=10000.0,
              rope_scaling=None, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, torch_dtype="bfloat16", vocab_size=vocab)
q_rank, n_shared = None, 2
if v3:
    d, heads, experts, moe, dense, vocab, q_rank, n_shared = 7168, 128, 256, 2048, 18432, 129280, 1536, 1
    config.update(architectures=["DeepseekV3ForCausalLM"], model_type="deepseek_v3", hidden_size=d, intermediate_size=dense,
                  moe_intermediate_size=moe, num_attention_heads=heads, num_key_value_heads=heads, n_shared_experts=1,
                  n_routed_experts=experts, routed_scaling_factor=2.5, q_lora_rank=q_rank, topk_method="noaux_tc", n_group=8, topk_group=4,
                  num_experts_per_tok=8, norm_topk_prob=True, scoring_func="sigmoid", num_nextn_predict_layers=0, vocab_size=vocab)
if qwen:
    d, heads, groups, dense, vocab = 1536, 12, 2, 8960, 151936
    config = dict(architectures=["Qwen2ForCausalLM"], model_type="qwen2", hidden_size=d, intermediate_size=dense, num_hidden_layers=layers,
                  num_attention_heads=heads, num_key_value_heads=groups, hidden_act="silu", max_position_embeddings=131072, rms_norm_eps=1e-6,
                  rope_theta=10000.0, bos_token_id=0, eos_token_id=1, tie_word_embeddings=False, torch_dtype="bfloat16", vocab_size=vocab,
                  use_sliding_window=False)
if fp8: config["quantization_config"] = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
json.dump(config, open(folder + "/config.json", "w"), indent=1)

device = "cuda" if torch.cuda.is_available() else "cpu"
torch.manual_seed(1)
def random(rows, cols): return torch.randn(rows, cols, device=device) / math.sqrt(cols)
def matrix(rows, cols): return random(rows, cols).to(torch.bfloat16).cpu()
def ones(n): return torch.ones(n, dtype=torch.bfloat16)

def linear(t, name, rows, cols):
    """A weight, in f8 with its scales where asked for."""
    if not fp8:
        t[name] = matrix(rows, cols)
        return
    r, c = -(-rows // 128), -(-cols // 128)
    w = torch.zeros(r * 128, c * 128, device=device)
    w[:rows, :cols] = random(rows, cols)
    scale = w.view(r, 128, c, 128).abs().amax(dim=(1, 3)) / 448
    w = (w.view(r, 128, c, 128) / scale[:, None, :, None]).view(r * 128, c * 128)[:rows, :cols]
    t[name], t[name + "_scale_inv"] = w.to(torch.float8_e4m3fn).contiguous().cpu(), scale.float().contiguous().cpu()

def mlp(t, name, width):
    linear(t, name + "gate_proj.weight", width, d)
    linear(t, name + "up_proj.weight", width, d)
    linear(t, name + "down_proj.weight", d, width)

where = {}
def save(name, t):
    save_file(t, f"{folder}/{name}")
    where.update({k: name for k in t})

save("ends.safetensors", {"model.embed_tokens.weight": matrix(vocab, d), "lm_head.weight": matrix(vocab, d), "model.norm.weight": ones(d)})
for i in range(layers):
    p, t = f"model.layers.{i}.", {}
    t[p + "input_layernorm.weight"], t[p + "post_attention_layernorm.weight"] = ones(d), ones(d)
    if qwen:
        for name, n in ("q", heads), ("k", groups), ("v", groups):
            linear(t, p + f"self_attn.{name}_proj.weight", n * 128, d)
            t[p + f"self_attn.{name}_proj.bias"] = 0.1 * matrix(1, n * 128)[0]
    else:
        t[p + "self_attn.kv_a_layernorm.weight"] = ones(rank)
        if q_rank:
            t[p + "self_attn.q_a_layernorm.weight"] = ones(q_rank)
            linear(t, p + "self_attn.q_a_proj.weight", q_rank, d)
        linear(t, p + f"self_attn.q_{'b_' * bool(q_rank)}proj.weight", heads * (nope + rope), q_rank or d)
        linear(t, p + "self_attn.kv_a_proj_with_mqa.weight", rank + rope, d)
        linear(t, p + "self_attn.kv_b_proj.weight", heads * (nope + v), rank)
    linear(t, p + "self_attn.o_proj.weight", d, heads * v)
    if i == 0 or qwen:
        mlp(t, p + "mlp.", dense)
    else:
        t[p + "mlp.gate.weight"] = matrix(experts, d)
        if v3: t[p + "mlp.gate.e_score_correction_bias"] = torch.zeros(experts)
        mlp(t, p + "mlp.shared_experts.", n_shared * moe)
        for e in range(experts): mlp(t, p + f"mlp.experts.{e}.", moe)
    save(f"layer-{i}.safetensors", t)
size = sum(os.path.getsize(f"{folder}/{n}") for n in set(where.values()))
json.dump({"metadata": {"total_size": size}, "weight_map": where}, open(folder + "/model.safetensors.index.json", "w"))
print(f"{folder}: {layers} layers, {size / 1e9:.1f} GB")
