/*
** peer.cu - kernels over the memory of other GPUs of the host. Waits look at flags in a rank's own memory; they end when the flag comes,
** when the host says so, or after twenty seconds.
**
** few_kernel: each rank writes its part into all others' memory, two floats and twice the number of the sum to 16 bytes, and looks at its
** own until both numbers are there: half of what travels is flags, but nothing is waited for twice.
** add_kernel, for more: each rank writes its part into all others' memory, raises a flag there, waits for theirs, and adds.
** Two halves take turns in both: a rank that writes a half again has seen what the others sent after they had read it. A block's elements
** are always the same ones.
** All others (swap, gather, columns, long sums): each rank tells the others where it has something for them, and takes what they have; nobody
** goes on before all have taken theirs.
*/
#include "peer.cuh"

constexpr int BLOCKS = 32;
constexpr int64_t SHORT = 64 << 10;      /* floats that add_kernel adds */
constexpr int64_t FEW = 4 << 10;         /* pairs of floats that few_kernel adds */
constexpr int FEW_BLOCKS = FEW / 256;
constexpr int SWAP_BLOCKS = 64, SWAP_THREADS = 512;
constexpr int64_t TICKS = 20000000000;   /* ns a kernel waits at most, should its host be gone */

/* Whose turn each word counts. */
enum { ADD_TURN = 0, FEW_TURN = BLOCKS, SWAP_TURN = FEW_TURN + FEW_BLOCKS, SWAP_DONE };
static_assert(SWAP_DONE < FM_TURNS, "each has a word");

/* ---- a mailbox ---- */

__host__ __device__ inline int64_t few_at(int n) { return 2 * n * SHORT * 4; }
__host__ __device__ inline int64_t posts_at(int n) { return few_at(n) + 2 * n * FEW * 16; }
__host__ __device__ inline int64_t flags_at(int n) { return posts_at(n) + 2 * n * 16; }
__host__ __device__ inline int64_t taken_at(int n) { return flags_at(n) + n * BLOCKS * 4; }
int64_t fm_mailbox_size(int n) { return taken_at(n) + n * 4; }

/* Of rank r: parts (2, n, SHORT), lines (2, n, FEW), posts (2, n), flags (n, BLOCKS), taken (n). */
__device__ __forceinline__ float *parts(const fm_peers &p, int r) { return (float *)p.box[r].base; }
__device__ __forceinline__ uint4 *lines(const fm_peers &p, int r) { return (uint4 *)(p.box[r].base + few_at(p.n)); }
__device__ __forceinline__ uint4 *posts(const fm_peers &p, int r) { return (uint4 *)(p.box[r].base + posts_at(p.n)); }
__device__ __forceinline__ uint32_t *flags(const fm_peers &p, int r) { return (uint32_t *)(p.box[r].base + flags_at(p.n)); }
__device__ __forceinline__ uint32_t *taken(const fm_peers &p, int r) { return (uint32_t *)(p.box[r].base + taken_at(p.n)); }

/* ---- waiting ---- */

__device__ __forceinline__ void raise(uint32_t *flag, uint32_t v) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(flag), "r"(v) : "memory");
}
__device__ __forceinline__ uint32_t seen(const uint32_t *flag) {
  uint32_t v;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(v) : "l"(flag) : "memory");
  return v;
}
__device__ __forceinline__ int64_t clock_ns() {
  int64_t t;
  asm volatile("mov.u64 %0, %%globaltimer;" : "=l"(t));
  return t;
}

/* Looks every now and then whether a wait is to end; false: it is. */
struct patience {
  volatile int *ended;
  int64_t begun;
  int looks;
  __device__ bool left() {
    if (++looks % 256) return true;
    if (!begun) begun = clock_ns();
    if (clock_ns() - begun > TICKS) *ended = 1;
    return !*ended;
  }
};

/* Until a flag has reached this turn. */
__device__ bool await(const uint32_t *flag, uint32_t turn, volatile int *ended) {
  patience p = { ended, 0, 0 };
  while ((int32_t)(seen(flag) - turn) < 0)
    if (!p.left()) return false;
  return true;
}

/* 16 bytes of which the second and the fourth word say which turn they are of. */
__device__ __forceinline__ void put_line(uint4 *to, uint32_t a, uint32_t b, uint32_t turn) {
  asm volatile("st.volatile.global.v4.u32 [%0], {%1, %2, %3, %2};" ::"l"(to), "r"(a), "r"(turn), "r"(b) : "memory");
}
__device__ __forceinline__ uint4 get_line(const uint4 *from) {
  uint4 v;
  asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from) : "memory");
  return v;
}
__device__ __forceinline__ bool await_line(uint4 &line, const uint4 *from, uint32_t turn, patience &p) {
  for (line = get_line(from); line.y != turn || line.w != turn; line = get_line(from))
    if (!p.left()) return false;
  return true;
}

/* ---- sums ---- */

__global__ void __launch_bounds__(256) few_kernel(float2 *x, const float2 *part, int64_t len, fm_peers p) {
  int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  uint32_t *turns = p.turn + FEW_TURN + blockIdx.x;
  patience patient = { p.ended, 0, 0 };
  fm_wait();
  fm_go_on();
  uint32_t turn = *turns + 1;
  int64_t half = (int64_t)(turn & 1) * p.n * FEW + i;
  __syncthreads();                       // all have read the turn
  if (threadIdx.x == 0) *turns = turn;
  if (i >= len) return;
  float2 mine = part[i], was = x[i], sum = { 0, 0 };
  for (int r = 0; r < p.n; r++)
    if (r != p.me) put_line(lines(p, r) + half + p.me * FEW, __float_as_uint(mine.x), __float_as_uint(mine.y), turn);
  for (int r = 0; r < p.n; r++) {
    uint4 line;
    if (r != p.me && !await_line(line, lines(p, p.me) + half + r * FEW, turn, patient)) return;
    float2 v = r == p.me ? mine : float2{ __uint_as_float(line.x), __uint_as_float(line.z) };
    sum = r ? float2{ sum.x + v.x, sum.y + v.y } : v;
  }
  x[i] = { was.x + sum.x, was.y + sum.y };
}

__global__ void __launch_bounds__(256) add_kernel(float4 *x, const float4 *part, int64_t len, fm_peers p) {
  int b = blockIdx.x, t = threadIdx.x;
  int64_t first = (int64_t)b * 256 + t, step = BLOCKS * 256, row = SHORT / 4;
  fm_wait();
  fm_go_on();
  uint32_t turn = p.turn[ADD_TURN + b] + 1;
  int64_t half = (int64_t)(turn & 1) * p.n * row;
  for (int64_t i = first; i < len; i += step) {
    float4 v = part[i];
    for (int r = 0; r < p.n; r++)
      if (r != p.me) ((float4 *)parts(p, r))[half + p.me * row + i] = v;
  }
  bool good = true;
  if ((int64_t)b * 256 < len) {          // the block has elements: the same for all ranks
    __threadfence_system();
    __syncthreads();
    if (t < p.n && t != p.me) {
      raise(flags(p, t) + p.me * BLOCKS + b, turn);
      good = await(flags(p, p.me) + t * BLOCKS + b, turn, p.ended);
    }
  }
  good = __syncthreads_and(good);
  if (t == 0) p.turn[ADD_TURN + b] = turn;
  const float4 *inbox = (const float4 *)parts(p, p.me) + half;
  for (int64_t i = first; i < len && good; i += step) {
    float4 sum = p.me == 0 ? part[i] : __ldcg(inbox + i);
    for (int r = 1; r < p.n; r++) {
      float4 v = r == p.me ? part[i] : __ldcg(inbox + r * row + i);
      sum.x += v.x, sum.y += v.y, sum.z += v.z, sum.w += v.w;
    }
    float4 was = x[i];
    x[i] = { was.x + sum.x, was.y + sum.y, was.z + sum.z, was.w + sum.w };
  }
}

bool fm_peer_can_add(int64_t len) { return len <= SHORT && len % 4 == 0; }

fm_status fm_peer_add(fm_ctx *c, const fm_peers *p, float *x, const float *part, int64_t len) {
  if (((uintptr_t)x | (uintptr_t)part) % 16) return fm_fail(&c->err, FM_EINVAL, "all_reduce: rows have to begin at multiples of 16 bytes");
  if (len <= 2 * FEW)
    fm_launch(c, few_kernel, (unsigned)((len / 2 + 255) / 256), 256, 0, (float2 *)x, (const float2 *)part, len / 2, *p);
  else fm_launch(c, add_kernel, BLOCKS, 256, 0, (float4 *)x, (const float4 *)part, len / 4, *p);
  return fm_cuda_launched(c, "all_reduce");
}

/* ---- taking what others show ---- */

struct peer_sizes { int64_t of[FM_PEERS]; };
struct swap_sizes { int64_t out[FM_PEERS], in[FM_PEERS]; };

__device__ __forceinline__ int64_t before(const int64_t *size, int r) {
  int64_t sum = 0;
  for (int i = 0; i < r; i++) sum += size[i];
  return sum;
}

/* Thread t shows rank t what show(t) is, and learns from it in from[t]; false: a wait was ended. *turn: of this call. */
template <typename Show> __device__ bool meet(const fm_peers &p, const char **from, uint32_t *turn, Show show) {
  int t = threadIdx.x;
  bool good = true;
  patience patient = { p.ended, 0, 0 };
  *turn = p.turn[SWAP_TURN] + 1;
  int64_t half = (int64_t)(*turn & 1) * p.n;
  if (t < p.n && t != p.me) {
    uint4 line;
    uint64_t mine = (uint64_t)show(t);
    if (blockIdx.x == 0) {
      __threadfence_system();            // what is shown there was written by kernels before
      put_line(posts(p, t) + half + p.me, (uint32_t)mine, (uint32_t)(mine >> 32), *turn);
    }
    good = await_line(line, posts(p, p.me) + half + t, *turn, patient);
    from[t] = (const char *)((uint64_t)line.z << 32 | line.x);
    __threadfence_system();
  }
  if (t == p.me) from[t] = show(t);
  return __syncthreads_and(good);
}

/* Until all have taken what they were shown: the last block says so to the others, and waits for their word. */
__device__ void part(const fm_peers &p, uint32_t turn) {
  __shared__ bool last;
  int t = threadIdx.x;
  __syncthreads();
  if (t == 0) {
    __threadfence();
    last = atomicAdd(&p.turn[SWAP_DONE], 1) == gridDim.x - 1;
  }
  __syncthreads();
  if (!last) return;
  if (t == 0) p.turn[SWAP_DONE] = 0, p.turn[SWAP_TURN] = turn;
  if (t >= p.n || t == p.me) return;
  __threadfence_system();
  raise(taken(p, t) + p.me, turn);
  await(taken(p, p.me) + t, turn, p.ended);
}

/* All threads of the grid together. Reading past L1: it may know what stood there before. */
__device__ void copy(char *to, const char *from, int64_t size) {
  int64_t at = (int64_t)blockIdx.x * SWAP_THREADS + threadIdx.x, step = (int64_t)gridDim.x * SWAP_THREADS, wide = 0;
  if (((uintptr_t)to | (uintptr_t)from) % 16 == 0) {
    wide = size / 16;
    uint4 *d = (uint4 *)to;
    const uint4 *s = (const uint4 *)from;
    int64_t i = at;
    for (; i + 3 * step < wide; i += 4 * step) {
      uint4 a = __ldcg(s + i), b = __ldcg(s + i + step), c = __ldcg(s + i + 2 * step), e = __ldcg(s + i + 3 * step);
      d[i] = a, d[i + step] = b, d[i + 2 * step] = c, d[i + 3 * step] = e;
    }
    for (; i < wide; i += step) d[i] = __ldcg(s + i);
  }
  for (int64_t i = wide * 16 + at; i < size; i += step) to[i] = __ldcg(from + i);
}

__global__ void __launch_bounds__(SWAP_THREADS) swap_kernel(char *out, const char *in, swap_sizes z, fm_peers p) {
  __shared__ const char *from[FM_PEERS];
  uint32_t turn;
  fm_wait();
  fm_go_on();
  if (!meet(p, from, &turn, [&](int t) { return in + before(z.in, t); })) return;
  for (int k = 1; k <= p.n; k++) {
    int r = (p.me + k) % p.n;
    copy(out + before(z.out, r), from[r], z.out[r]);
  }
  part(p, turn);
}

__global__ void __launch_bounds__(SWAP_THREADS) gather_kernel(char *out, const char *mine, peer_sizes z, fm_peers p) {
  __shared__ const char *from[FM_PEERS];
  uint32_t turn;
  fm_wait();
  fm_go_on();
  if (!meet(p, from, &turn, [&](int) { return mine; })) return;
  for (int k = 1; k <= p.n; k++) {
    int r = (p.me + k) % p.n;
    char *to = out + before(z.of, r);
    if (to != from[r]) copy(to, from[r], z.of[r]);
  }
  part(p, turn);
}

/* V: float, or float4 where all widths and addresses are whole ones; n_v: widths in V. */
template <typename V> __global__ void __launch_bounds__(SWAP_THREADS) columns_kernel(V *out, const V *mine, int n, peer_sizes n_v, fm_peers p) {
  __shared__ const char *from[FM_PEERS];
  uint32_t turn;
  fm_wait();
  fm_go_on();
  if (!meet(p, from, &turn, [&](int) { return (const char *)mine; })) return;
  int64_t all = before(n_v.of, p.n);
  for (int k = 1; k <= p.n && out; k++) {
    int r = (p.me + k) % p.n, width = (int)n_v.of[r];
    V *to = out + before(n_v.of, r);
    for (int64_t i = (int64_t)blockIdx.x * SWAP_THREADS + threadIdx.x; i < (int64_t)n * width; i += (int64_t)gridDim.x * SWAP_THREADS) {
      int row = (int)((uint32_t)i / (uint32_t)width), at = (int)((uint32_t)i % (uint32_t)width);
      to[row * all + at] = __ldcg((const V *)from[r] + i);
    }
  }
  part(p, turn);
}

struct combine_job {
  float *out;
  const char *answers;
  const int32_t *id;
  const float *weight;
  int64_t n, row;
  int64_t rows_at;                       /* of answers: where places end and rows begin */
  int k, experts, dim;
};

/* Four elements of a row a thread, choices in their order, as combine_kernel of moe.cu. */
__global__ void __launch_bounds__(SWAP_THREADS) combine_kernel(combine_job j, fm_peers p) {
  __shared__ const char *from[FM_PEERS];
  uint32_t turn;
  fm_wait();
  fm_go_on();
  if (!meet(p, from, &turn, [&](int) { return j.answers; })) return;
  int64_t across = j.dim / 4;
  for (int64_t i = (int64_t)blockIdx.x * SWAP_THREADS + threadIdx.x; i < j.n * across; i += (int64_t)gridDim.x * SWAP_THREADS) {
    int64_t row = i / across, col = i % across;
    float4 sum = { 0, 0, 0, 0 };
    for (int s = 0; s < j.k; s++) {
      int64_t slot = row * j.k + s;
      float w = j.weight[slot];
      const char *who = from[((int64_t)(j.id[slot] + 1) * p.n - 1) / j.experts];
      int at = __ldcg((const int *)who + j.row * j.k + slot);
      float4 v = __ldcg((const float4 *)(who + j.rows_at) + at * across + col);
      sum = { fmaf(w, v.x, sum.x), fmaf(w, v.y, sum.y), fmaf(w, v.z, sum.z), fmaf(w, v.w, sum.w) };
    }
    float4 *to = (float4 *)j.out + i, was = *to;
    *to = { was.x + sum.x, was.y + sum.y, was.z + sum.z, was.w + sum.w };
  }
  part(p, turn);
}

__device__ __forceinline__ void add_eight(float (&sum)[8], const float *from, int64_t i) {
  float4 a = __ldcg((const float4 *)from + 2 * i), b = __ldcg((const float4 *)from + 2 * i + 1);
  sum[0] += a.x, sum[1] += a.y, sum[2] += a.z, sum[3] += a.w, sum[4] += b.x, sum[5] += b.y, sum[6] += b.z, sum[7] += b.w;
}
__device__ __forceinline__ void add_eight(float (&sum)[8], const bf16 *from, int64_t i) {
  float v[8];
  fm_eight<0>(v, __ldcg((const uint4 *)from + i));
#pragma unroll
  for (int e = 0; e < 8; e++) sum[e] += v[e];
}

/* Eight elements a thread; T: f32 or bf16. */
template <typename T> __global__ void __launch_bounds__(SWAP_THREADS) long_kernel(float4 *x, const T *mine, int64_t eights, fm_peers p) {
  __shared__ const char *from[FM_PEERS];
  uint32_t turn;
  fm_wait();
  fm_go_on();
  if (!meet(p, from, &turn, [&](int) { return (const char *)mine; })) return;
  for (int64_t i = (int64_t)blockIdx.x * SWAP_THREADS + threadIdx.x; i < eights; i += (int64_t)gridDim.x * SWAP_THREADS) {
    float4 a = x[2 * i], b = x[2 * i + 1];
    float sum[8];
#pragma unroll
    for (int e = 0; e < 8; e++) sum[e] = -0.0f;            // adding to it changes nothing, not even a zero's sign
    for (int r = 0; r < p.n; r++) add_eight(sum, (const T *)from[r], i);
    x[2 * i] = { a.x + sum[0], a.y + sum[1], a.z + sum[2], a.w + sum[3] };
    x[2 * i + 1] = { b.x + sum[4], b.y + sum[5], b.z + sum[6], b.w + sum[7] };
  }
  part(p, turn);
}

__global__ void __launch_bounds__(256) round_kernel(uint4 *out, const float4 *in, int64_t eights) {
  int64_t i = (int64_t)blockIdx.x * 256 + threadIdx.x;
  fm_wait();
  fm_go_on();
  if (i >= eights) return;
  float4 a = in[2 * i], b = in[2 * i + 1];
  out[i] = { fm_pack(a.x, a.y), fm_pack(a.z, a.w), fm_pack(b.x, b.y), fm_pack(b.z, b.w) };
}

static unsigned blocks_for(int64_t threads, int64_t most) {
  int64_t blocks = (threads + SWAP_THREADS - 1) / SWAP_THREADS;
  return (unsigned)(blocks < 1 ? 1 : blocks < most ? blocks : most);
}

fm_status fm_peer_swap(fm_ctx *c, const fm_peers *p, char *out, const int64_t *out_size, const char *in, const int64_t *in_size) {
  swap_sizes z = {};
  int64_t size = 0;
  for (int r = 0; r < p->n; r++) z.out[r] = out_size[r], z.in[r] = in_size[r], size += out_size[r];
  fm_launch(c, swap_kernel, blocks_for(size / 64, SWAP_BLOCKS), SWAP_THREADS, 0, out, in, z, *p);
  return fm_cuda_launched(c, "all_to_all");
}

fm_status fm_peer_gather(fm_ctx *c, const fm_peers *p, char *out, const char *mine, const int64_t *size) {
  peer_sizes z = {};
  int64_t sum = 0;
  for (int r = 0; r < p->n; r++) z.of[r] = size[r], sum += size[r];
  fm_launch(c, gather_kernel, blocks_for(sum / 64, SWAP_BLOCKS), SWAP_THREADS, 0, out, mine, z, *p);
  return fm_cuda_launched(c, "all_gather");
}

fm_status fm_peer_combine(fm_ctx *c, const fm_peers *p, float *out, const void *answers, const int32_t *id, const float *weight,
                          const fm_combine *j) {
  if (j->hidden_size % 4) return fm_fail(&c->err, FM_EUNSUPPORTED, "cuda: ep wants a hidden_size of whole vectors");
  combine_job job = { out, (const char *)answers, id, weight, j->n, j->row, fm_answers_at(j->all * j->top_k), (int)j->top_k, (int)j->n_experts,
                      (int)j->hidden_size };
  fm_launch(c, combine_kernel, blocks_for(j->n * j->hidden_size / 4, 2 * fm_cuda_of(c)->n_sm), SWAP_THREADS, 0, job, *p);
  return fm_cuda_launched(c, "all_combine");
}

bool fm_peer_can_columns(int64_t n, const int64_t *width, int ranks) {
  for (int r = 0; r < ranks; r++)
    if (n * width[r] > INT32_MAX) return false;
  return true;
}

fm_status fm_peer_columns(fm_ctx *c, const fm_peers *p, float *out, const float *mine, int64_t n, const int64_t *width) {
  peer_sizes z = {}, z4 = {};
  bool vectors = true;
  int64_t sum = 0;
  for (int r = 0; r < p->n; r++) {
    z.of[r] = width[r], z4.of[r] = width[r] / 4, sum += n * width[r];
    vectors = vectors && width[r] % 4 == 0;                // scratch begins at whole vectors everywhere
  }
  if (vectors && ((uintptr_t)out | (uintptr_t)mine) % 16)
    return fm_fail(&c->err, FM_EINVAL, "all_columns: rows have to begin at multiples of 16 bytes");
  unsigned blocks = blocks_for(sum / 16, SWAP_BLOCKS);
  if (vectors) fm_launch(c, columns_kernel<float4>, blocks, SWAP_THREADS, 0, (float4 *)out, (const float4 *)mine, (int)n, z4, *p);
  else fm_launch(c, columns_kernel<float>, blocks, SWAP_THREADS, 0, out, mine, (int)n, z, *p);
  return fm_cuda_launched(c, "all_columns");
}

/* Everybody reads all parts of all: n - 1 times the bytes, of which two ranks send no more than by any other way. */
bool fm_peer_can_add_long(const fm_peers *p, int64_t len) { return p->n == 2 && len % 8 == 0; }

fm_status fm_peer_add_long(fm_ctx *c, const fm_peers *p, float *x, const float *mine, int64_t len) {
  int64_t eights = len / 8, used = c->slab_used;
  unsigned blocks = blocks_for(eights, 2 * fm_cuda_of(c)->n_sm);
  if (((uintptr_t)x | (uintptr_t)mine) % 16) return fm_fail(&c->err, FM_EINVAL, "all_reduce: rows have to begin at multiples of 16 bytes");
  if (c->arithmetic == FM_F32) {
    fm_launch(c, long_kernel<float>, blocks, SWAP_THREADS, 0, (float4 *)x, mine, eights, *p);
  } else {
    bf16 *rounded;
    TRY(fm_cuda_take_n(c, &rounded, len));
    fm_launch(c, round_kernel, (unsigned)((eights + 255) / 256), 256, 0, (uint4 *)rounded, (const float4 *)mine, eights);
    fm_launch(c, long_kernel<bf16>, blocks, SWAP_THREADS, 0, (float4 *)x, (const bf16 *)rounded, eights, *p);
  }
  c->slab_used = used;                   // what follows on the stream waits until all have taken it
  return fm_cuda_launched(c, "all_reduce");
}
