/*
** attention.cuh - what the attention kernels share: where a sequence's keys are cut, and what a call is about.
*/
#ifndef FM_KERNELS_ATTENTION_CUH
#define FM_KERNELS_ATTENTION_CUH

#include "rope.cuh"

/* ---- cuts: the keys of a row are divided into runs of one width, which are summed side by side. The width is a function of how
   many keys the row sees and of the model's heads, so that a row's sum has one order whoever runs beside it. A part is rank
   floats for each head: with more heads there are fewer, for the sake of bytes. ---- */

/* 16, 8, 4 or 2 cuts are wanted, 128, 256 or 512 keys are the least, 16,384 for all that are wanted the most. */
__host__ __device__ __forceinline__ int cuts_wanted(int heads) { return heads < 32 ? 16 : heads < 64 ? 8 : heads < 128 ? 4 : 2; }

/* Keys in a cut of a row that sees `seen`. */
__host__ __device__ __forceinline__ int cut_width(int64_t seen, int heads) {
  int wanted = cuts_wanted(heads), width = min(2048 / wanted, 512);
  while (width < 16384 / wanted && seen > (int64_t)wanted * width) width *= 2;
  return width;
}
__host__ __device__ __forceinline__ int cuts_of(int64_t seen, int heads) {
  int width = cut_width(seen, heads);
  return (int)((seen + width - 1) / width);
}
/* The most cuts of any row that sees up to `seen`. */
inline int cuts_room(int64_t seen, int heads) {
  int wanted = cuts_wanted(heads);
  return seen >= 2048 ? max(wanted, cuts_of(seen, heads)) : cuts_of(seen, heads);
}

/* First cut of a row that sees some key; those before it have no parts. */
__device__ __forceinline__ int first_cut(int64_t first_key, int width) { return (int)(first_key / FM_PAGE * FM_PAGE / width); }

/* Span that row is in, by a warp; NULL: none. */
__device__ __forceinline__ const fm_span *fm_warp_span(const fm_dspans &s, int64_t row) {
  for (int64_t i0 = 0; i0 < s.n; i0 += 32) {
    int64_t i = i0 + (threadIdx.x & 31);
    unsigned here = __ballot_sync(~0u, i < s.n && row >= s.span[i].row && row < s.span[i].row + s.span[i].n);
    if (here) return &s.span[i0 + __ffs(here) - 1];
  }
  return nullptr;
}

/* Shared by the kernels of one call. rows: n of them, whichever spans they are in. */
struct attn {
  fm_dcache k;
  fm_dspans s;
  const float *q; int64_t ldq;
  float *out; int64_t ldo;
  int heads, nope, rope, v, rank, width; /* width: of a query in the latent space, rank + rope */
  int per;                               /* heads that read the same keys: MLA's all */
  float scale;
  fm_dmat kv_b;
  float *qa32; bf16 *qa16;               /* (n, heads, width): absorbed queries, in one of the two */
  float *part, *part_ms;                 /* (n * heads, cuts, rank), (n * heads, cuts, 2): sums, maximum and sum of weights */
  int cuts;                              /* room for */
  fm_latents fresh;                      /* rows that absorb stores, and whose queries it turns; kv NULL: it has been done */
  int64_t row0; int n;                   /* rows row0 .. row0 + n - 1; the arrays above begin with row0 */
};

/* The sizes of the released models, which the tensor-core forms of mla_decode are for. */
constexpr int MLA_WIDTH = 576, MLA_RANK = 512;

/* ---- asynchronous copies into shared memory, and matrices out of it ---- */

__device__ __forceinline__ uint32_t smem_at(const void *p) { return (uint32_t)__cvta_generic_to_shared(p); }
__device__ __forceinline__ void copy16(void *to, const void *from) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" :: "r"(smem_at(to)), "l"(from));
}
__device__ __forceinline__ void copy_commit() { asm volatile("cp.async.commit_group;"); }
template <int N> __device__ __forceinline__ void copy_wait() { asm volatile("cp.async.wait_group %0;" :: "n"(N)); }
__device__ __forceinline__ void matrix4(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_at(p)));
}
__device__ __forceinline__ void matrix4_turned(uint32_t (&r)[4], const void *p) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3]) : "r"(smem_at(p)));
}

/* Parts by items: TILE (row, head) pairs of one span and one cut, of heads that read the same keys; tiles of the same keys are neighbours.
   Rows of a span whose cuts have another width count as another span. By whole warps: a lane counts the items of a span. */
template <int TILE> struct items {
  int64_t next, before;                  /* the item wanted; items before the 32 spans that are looked at */
  int first_span, upto;                  /* the first of these; items of this lane's span and of those of them before it */
  bool counted;
  /* what find found */
  int span, row;                         /* the span and the row of it that the tile's pairs are counted from */
  int first, pairs;                      /* of the tile: its first pair counted from (row, head 0), how many there are */
  int cut;
  int64_t begin, end;                    /* keys of the cut that some pair of the tile sees; none: begin >= end */

  struct run { int rows, width, tiles, cuts; };                  /* rows whose cuts have one width */
  static __device__ run run_from(const attn &a, const fm_span &s, int row) {
    run r;
    int64_t last = s.index + s.n;        // what the last one sees
    int wanted = cuts_wanted(a.heads);
    r.width = cut_width(s.index + row + 1, a.heads);
    if (r.width < 16384 / wanted) last = min(last, (int64_t)wanted * r.width);
    r.rows = (int)(last - s.index) - row, r.tiles = (r.rows * a.per + TILE - 1) / TILE, r.cuts = (int)((last + r.width - 1) / r.width);
    return r;
  }
  static __device__ int items_of(const attn &a, const fm_span &s) {
    int n = 0;
    for (int row = 0; row < s.n;) {
      run r = run_from(a, s, row);
      n += r.tiles * r.cuts, row += r.rows;
    }
    return n;
  }

  __device__ void place(const attn &a, int at) {
    const fm_span &s = a.s.span[span];
    run r;
    for (row = 0;; row += r.rows, at -= r.tiles * r.cuts) {
      r = run_from(a, s, row);
      if (at < r.tiles * r.cuts) break;
    }
    cut = at / r.tiles, first = at % r.tiles * TILE, pairs = min(r.rows * a.per - first, TILE);
    begin = (int64_t)cut * r.width, end = min(begin + r.width, s.index + row + (first + pairs - 1) / a.per + 1);
    begin = max(begin, s.first_key / FM_PAGE * FM_PAGE);
  }

  /* False behind the last item. */
  __device__ bool find(const attn &a) {
    int lane = threadIdx.x & 31;
    for (; first_span < a.s.n; before += __shfl_sync(~0u, upto, 31), first_span += 32, counted = false) {
      if (!counted) {
        upto = first_span + lane < a.s.n ? items_of(a, a.s.span[first_span + lane]) : 0;
        for (int o = 1; o < 32; o *= 2) {
          int left = __shfl_up_sync(~0u, upto, o);
          if (lane >= o) upto += left;
        }
        counted = true;
      }
      unsigned behind = __ballot_sync(~0u, next - before < upto);
      if (!behind) continue;
      int l = __ffs(behind) - 1, ahead = __shfl_sync(~0u, upto, (l - 1) & 31);
      span = first_span + l;
      place(a, (int)(next - before) - (l > 0 ? ahead : 0));
      return true;
    }
    return false;
  }
};

#endif
