// What a few new tokens take from what their rows' cache holds: ops/attention.py in one pass over the slots that are filled.
//
// A query goes through the slots in blocks of 256: scores, their exponents, the sum of values weighted by them. Where a block has
// a larger score than all before, what was summed is scaled down to it (Milakov & Gimelshein 2018, arXiv:1805.02867; Dao et al.
// 2022, arXiv:2205.14135). Every number depends on the row's own slots alone and is summed in their order: not on the other rows,
// on how many slots the cache has, or on the threads.
//
// Keys and values are floats, or whole numbers of 8 bits with a scale for each vector: these are read as they are, a product
// with a key is scaled behind it, and the scale of a value is in the weight that it gets.
#include <math.h>
#include <stdbool.h>
#include <string.h>

#include "threads.h"
#if defined(__x86_64__)
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

#ifdef __AVX512F__
enum { L = 16 };
#else
enum { L = 8 };  // numbers in one step: a register of AVX2, two of NEON
#endif
enum { BLOCK = 256 };  // slots
typedef float floats __attribute__((vector_size(4 * L)));
typedef int32_t ints __attribute__((vector_size(4 * L)));

// Each function that reads vectors is compiled for both kinds: it is part of two that say which.
#define OF_BOTH static inline __attribute__((always_inline))

typedef struct {
  const float* q;                            // [B T N H]
  const void *keys, *values;                 // [B K S H] twice, float or int8_t
  const float *key_scale, *value_scale;      // [B K S] twice, of int8_t
  const int32_t *at, *positions, *filled;    // [B T], [B S], [B]
  const float* sinks;                        // [N], -inf for none
  float* mixed;                              // [B T N H]
  int64_t B, T, N, K, S, H;
  int64_t window;                            // 0 for none
  float scale, cap;                          // 0 for no cap
} Attention;

// A head of a row: its vectors, and where they have scales, these.
typedef struct {
  const void *keys, *values;
  const float *key_scale, *value_scale;
} Head;

static inline floats load(const float* from) {
  floats x;
  memcpy(&x, from, sizeof x);
  return x;
}

static inline void store(float* to, floats x) { memcpy(to, &x, sizeof x); }

static inline floats pick(ints where, floats yes, floats no) { return (floats)((where & (ints)yes) | (~where & (ints)no)); }

static inline floats widened(const int8_t* from) {
#if defined(__AVX512F__)
  return (floats)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const void*)from)));
#elif defined(__AVX2__)
  return (floats)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const void*)from)));
#elif defined(__aarch64__)
  const int16x8_t wide = vmovl_s8(vld1_s8(from));
  const float32x4_t two[2] = {vcvtq_f32_s32(vmovl_s16(vget_low_s16(wide))), vcvtq_f32_s32(vmovl_high_s16(wide))};
  return load((const float*)two);
#else
  floats x;
  for (int l = 0; l < L; l++) x[l] = from[l];
  return x;
#endif
}

// L numbers of a vector, from the one at `at` on
OF_BOTH floats numbers(const void* from, int64_t at, bool whole) {
  return whole ? widened((const int8_t*)from + at) : load((const float*)from + at);
}

static inline float total(floats x) {
  float s[L];
  store(s, x);
  for (int n = L / 2; n; n /= 2)
    for (int l = 0; l < n; l++) s[l] += s[l + n];
  return s[0];
}

// e^x for x <= 0, to 2e-7 of it, and 0 below 2^-125: 2^n times the Taylor series of e^r, where x = n ln 2 + r. Adding 1.5 * 2^23
// rounds to whole n.
static inline floats exponential(floats x) {
  const floats whole = (floats){} + 12582912.0f;
  floats n = x * 1.44269504f + whole;
  const ints power = (ints)n << 23;
  n -= whole;
  const floats r = x - n * 0.693145752f - n * 1.42860677e-6f;  // ln 2 in two parts, the first of few bits
  floats e = r * 1.98412698e-4f + 1.38888889e-3f;
  e = e * r + 8.33333333e-3f;
  e = e * r + 4.16666667e-2f;
  e = e * r + 1.66666667e-1f;
  e = e * r + 0.5f;
  e = e * r + 1.0f;
  e = e * r + 1.0f;
  return pick(x < -87.0f, (floats){}, (floats)((ints)e + power));
}

// The last numbers of a vector, fewer than L, and zeros. All sums are of registers: a compiler may take the products of a plain loop
// apart from its sums, but not those of its last round, and what a slot adds would depend on how many there are.
static inline floats load_some(const float* from, int64_t count) {
  float some[L] = {0};
  memcpy(some, from, count * sizeof *some);
  return load(some);
}

OF_BOTH floats some_numbers(const void* from, int64_t at, int64_t count, bool whole) {
  int8_t some[L] = {0};
  if (!whole) return load_some((const float*)from + at, count);
  memcpy(some, (const int8_t*)from + at, count);
  return widened(some);
}

static inline void store_some(float* to, floats x, int64_t count) {
  float some[L];
  store(some, x);
  memcpy(to, some, count * sizeof *some);
}

// The product of a query [H] with the vector that begins at `at`: four sums at a time, since each addition waits for the one before it.
OF_BOTH float dot(const float* q, const void* keys, int64_t at, int64_t H, bool whole) {
  floats s = {}, t = {}, u = {}, v = {};
  int64_t h = 0;
  for (; h + 4 * L <= H; h += 4 * L) {
    s += load(q + h) * numbers(keys, at + h, whole), t += load(q + h + L) * numbers(keys, at + h + L, whole);
    u += load(q + h + 2 * L) * numbers(keys, at + h + 2 * L, whole), v += load(q + h + 3 * L) * numbers(keys, at + h + 3 * L, whole);
  }
  for (; h + L <= H; h += L) s += load(q + h) * numbers(keys, at + h, whole);
  if (h < H) t += load_some(q + h, H - h) * some_numbers(keys, at + h, H - h, whole);
  return total((s + t) + (u + v));
}

// sum [H] += weight [n] times the n vectors [H] that begin at `at`, a few columns at a time, whose sums stay in registers
OF_BOTH void add_weighted(float* sum, const float* weight, const void* values, int64_t at, int64_t n, int64_t H, bool whole) {
  int64_t h = 0;
  for (; h + 4 * L <= H; h += 4 * L) {
    floats s = {}, t = {}, u = {}, v = {};
    for (int64_t slot = 0, one = at + h; slot < n; slot++, one += H) {
      s += weight[slot] * numbers(values, one, whole), t += weight[slot] * numbers(values, one + L, whole);
      u += weight[slot] * numbers(values, one + 2 * L, whole), v += weight[slot] * numbers(values, one + 3 * L, whole);
    }
    store(sum + h, load(sum + h) + s), store(sum + h + L, load(sum + h + L) + t);
    store(sum + h + 2 * L, load(sum + h + 2 * L) + u), store(sum + h + 3 * L, load(sum + h + 3 * L) + v);
  }
  for (; h + L <= H; h += L) {
    floats s = {};
    for (int64_t slot = 0, one = at + h; slot < n; slot++, one += H) s += weight[slot] * numbers(values, one, whole);
    store(sum + h, load(sum + h) + s);
  }
  if (h < H) {
    floats s = {};
    for (int64_t slot = 0, one = at + h; slot < n; slot++, one += H) s += weight[slot] * some_numbers(values, one, H - h, whole);
    store_some(sum + h, load_some(sum + h, H - h) + s, H - h);
  }
}

// One query [H] at a position over the first `filled` slots of its row and head -> mixed [H], zeros where it may see nothing.
// What a sink takes is missing from the slots: it is the first score, of a value of zeros.
OF_BOTH void query(const Attention* a, const float* q, Head head, const int32_t* positions, int64_t filled, int32_t at, float sink,
                   float* mixed, bool whole) {
  const int64_t H = a->H;
  float weight[BLOCK], most = sink, sum = sink > -INFINITY;
  memset(mixed, 0, H * sizeof *mixed);
  for (int64_t begin = 0; begin < filled; begin += BLOCK) {
    const int64_t n = filled - begin < BLOCK ? filled - begin : BLOCK;
    float now = most;
    for (int64_t slot = 0; slot < n; slot++) {
      const int32_t position = positions[begin + slot];
      weight[slot] = -INFINITY;
      if (position < 0 || position > at || (a->window && at - position >= a->window)) continue;
      float score = a->scale * dot(q, head.keys, (begin + slot) * H, H, whole);
      if (whole) score *= head.key_scale[begin + slot];
      if (a->cap) score = a->cap * tanhf(score / a->cap);
      weight[slot] = score;
      if (!(score <= now)) now = score;  // also where it is no number
    }
    if (now == -INFINITY) continue;
    for (int64_t slot = n; slot % L; slot++) weight[slot] = -INFINITY;
    if (now > most && sum) {
      const float less = expf(most - now);
      sum *= less;
      for (int64_t h = 0; h < H; h++) mixed[h] *= less;
    }
    most = now;
    floats part = {};
    for (int64_t slot = 0; slot < n; slot += L) {
      const floats e = exponential(load(weight + slot) - most);
      store(weight + slot, e);
      part += e;
    }
    sum += total(part);
    if (whole)
      for (int64_t slot = 0; slot < n; slot++) weight[slot] *= head.value_scale[begin + slot];
    add_weighted(mixed, weight, head.values, begin * H, n, H, whole);
  }
  if (sum)
    for (int64_t h = 0; h < H; h++) mixed[h] /= sum;
}

// A key/value head of a row, with all queries that look at it
OF_BOTH void of_head(const Attention* a, int64_t piece, bool whole) {
  const int64_t row = piece / a->K, K = piece % a->K, G = a->N / a->K, slots = piece * a->S;
  const int64_t size = slots * a->H * (whole ? 1 : (int64_t)sizeof(float));
  Head head = {.keys = (const char*)a->keys + size, .values = (const char*)a->values + size};
  if (whole) head.key_scale = a->key_scale + slots, head.value_scale = a->value_scale + slots;
  for (int64_t t = 0; t < a->T; t++)
    for (int64_t g = 0; g < G; g++) {
      const int64_t one = ((row * a->T + t) * a->N + K * G + g) * a->H;
      query(a, a->q + one, head, a->positions + row * a->S, a->filled[row], a->at[row * a->T + t], a->sinks[K * G + g],
            a->mixed + one, whole);
    }
}

static void of_floats(const void* job, int64_t piece) { of_head(job, piece, false); }
static void of_whole(const void* job, int64_t piece) { of_head(job, piece, true); }

static XLA_FFI_Error* attend(XLA_FFI_CallFrame* call, bool whole) {
  if (only_asked(call)) return NULL;
  XLA_FFI_Buffer** in = (XLA_FFI_Buffer**)call->args.args;
  const XLA_FFI_Buffer *q = in[0], *keys = in[1], *out = call->rets.rets[0];
  const float* how = in[7]->data;  // scale, cap, window
  Attention a = {
      .q = q->data, .keys = keys->data, .values = in[2]->data, .at = in[3]->data, .positions = in[4]->data,
      .filled = in[5]->data, .sinks = in[6]->data, .mixed = out->data, .B = q->dims[0], .T = q->dims[1], .N = q->dims[2], .H = q->dims[3],
      .K = keys->dims[1], .S = keys->dims[2], .scale = how[0], .cap = how[1], .window = (int64_t)how[2],
  };
  if (whole) a.key_scale = in[8]->data, a.value_scale = in[9]->data;
  int64_t slots = 0;
  for (int64_t row = 0; row < a.B; row++) slots += a.filled[row];
  in_pieces(call, whole ? of_whole : of_floats, &a, a.B * a.K, slots * a.K * a.H * 2 * (whole ? 1 : (int64_t)sizeof(float)));
  return NULL;
}

XLA_FFI_Error* nanollm_attention(XLA_FFI_CallFrame* call) { return attend(call, false); }
XLA_FFI_Error* nanollm_attention_s8(XLA_FFI_CallFrame* call) { return attend(call, true); }
