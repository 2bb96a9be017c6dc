/*
** peer.cu - kernels over the memory of other GPUs of the host. Waits look at flags in a rank's own memory; they end when the flag comes,
** when the host says so, or after twenty seconds.
**
** few_kernel: each rank writes its part into all others' memory, two floats and twice the number of the sum to 16 bytes, and looks at its
** own until both numbers are there: half of what travels is flags, but nothing is waited for twice.
** add_kernel, for more: each rank writes its part into all others' memory, raises a flag there, waits for theirs, and adds.
** Two halves take turns in both: a rank that writes a half again has seen what the others sent after they had read it. A block's elements
** are always the same ones.
** swap_kernel: each rank tells the others where it has something for them, and takes what they have; nobody goes on before all have
** taken theirs.
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

/* ---- exchanges ---- */

struct swap_sizes { int64_t out[FM_PEERS], in[FM_PEERS]; };

__device__ __forceinline__ int64_t before(const int64_t *size, int r) {
  int64_t sum = 0;
  for (int i = 0; i < r; i++) sum += size[i];
  return sum;
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
  __shared__ bool last;
  int t = threadIdx.x;
  bool good = true;
  patience patient = { p.ended, 0, 0 };
  fm_wait();
  fm_go_on();
  uint32_t turn = p.turn[SWAP_TURN] + 1;
  int64_t half = (int64_t)(turn & 1) * p.n;
  if (t < p.n && t != p.me) {
    uint4 line;
    uint64_t mine = (uint64_t)(in + before(z.in, t));
    if (blockIdx.x == 0) {
      __threadfence_system();            // what is shown there was written by kernels before
      put_line(posts(p, t) + half + p.me, (uint32_t)mine, (uint32_t)(mine >> 32), turn);
    }
    good = await_line(line, posts(p, p.me) + half + t, turn, patient);
    from[t] = (const char *)((uint64_t)line.z << 32 | line.x);
    __threadfence_system();
  }
  if (t == p.me) from[t] = in + before(z.in, t);
  if (!__syncthreads_and(good)) return;
  for (int k = 1; k <= p.n; k++) {
    int r = (p.me + k) % p.n;
    copy(out + before(z.out, r), from[r], z.out[r]);
  }
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

fm_status fm_peer_swap(fm_ctx *c, const fm_peers *p, char *out, const int64_t *out_size, const char *in, const int64_t *in_size) {
  swap_sizes z = {};
  int64_t size = 0;
  for (int r = 0; r < p->n; r++) z.out[r] = out_size[r], z.in[r] = in_size[r], size += out_size[r];
  int64_t blocks = (size + SWAP_THREADS * 64 - 1) / (SWAP_THREADS * 64);
  fm_launch(c, swap_kernel, (unsigned)(blocks < 1 ? 1 : blocks < SWAP_BLOCKS ? blocks : SWAP_BLOCKS), SWAP_THREADS, 0, out, in, z, *p);
  return fm_cuda_launched(c, "all_to_all");
}
