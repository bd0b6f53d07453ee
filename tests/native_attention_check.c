// Attention over a cache, of floats and of whole numbers, held against its definition in plain C, with other bits in no other
// company. Compiled with sanitizers by `make native-check`, for each size of vectors, and for other processors.
#include <stdio.h>
#include "attention.c"
#include "native_random.h"


static float* drawn(int64_t count, float size) {
  float* made = malloc(count * sizeof *made);
  for (int64_t n = 0; n < count; n++) made[n] = size * normal();
  return made;
}
static int8_t* drawn_whole(int64_t count) {
  int8_t* made = malloc(count);
  for (int64_t n = 0; n < count; n++) made[n] = (int8_t)(draw() % 7 ? draw() % 255 - 127 : 127);
  return made;
}

static double number(const void* from, const float* scale, int64_t vector, int64_t h, int64_t H) {
  return scale ? (double)((const int8_t*)from)[vector * H + h] * scale[vector] : ((const float*)from)[vector * H + h];
}

// The definition, in float64, of one query; how far a sum of float32 may be off: as far as roundings of all its terms walk.
static void plain(const Attention* a, int64_t row, int64_t t, int64_t n, double* mixed, double* off) {
  const int64_t vectors = (row * a->K + n / (a->N / a->K)) * a->S, H = a->H, at = a->at[row * a->T + t];
  const float* q = a->q + ((row * a->T + t) * a->N + n) * H;
  double* weight = malloc((a->filled[row] + 1) * sizeof *weight);
  double most = a->sinks[n], sum = 0, size = 0;
  for (int64_t slot = 0; slot < a->filled[row]; slot++) {
    const int64_t position = a->positions[row * a->S + slot];
    double score = 0, terms = 0;
    for (int64_t h = 0; h < H; h++) {
      const double term = q[h] * number(a->keys, a->key_scale, vectors + slot, h, H);
      score += term, terms += fabs(term);
    }
    score *= a->scale;
    if (a->cap) score = a->cap * tanh(score / a->cap);
    weight[slot] = position < 0 || position > at || (a->window && at - position >= a->window) ? -INFINITY : score;
    if (weight[slot] > most) most = weight[slot];
    if (fabs(a->scale) * terms > size) size = fabs(a->scale) * terms;
  }
  for (int64_t h = 0; h < H; h++) mixed[h] = 0;
  if (most > -INFINITY) sum = exp(a->sinks[n] - most);
  *off = 0;
  for (int64_t slot = 0; slot < a->filled[row]; slot++) {
    if (most == -INFINITY) break;
    const double part = exp(weight[slot] - most);
    sum += part;
    for (int64_t h = 0; h < H; h++) {
      const double value = number(a->values, a->value_scale, vectors + slot, h, H);
      mixed[h] += part * value;
      if (part > 0 && fabs(value) > *off) *off = fabs(value);
    }
  }
  for (int64_t h = 0; sum && h < H; h++) mixed[h] /= sum;
  *off = *off * 0x1p-24 * (16 + 4 * size) + (a->filled[row] + 1) * 0x1p-142;  // denormal: 127 times a scale
  free(weight);
}

static int failed = 0;
static void expect(bool right, const Attention* a, const char* what) {
  if (right || failed++ >= 20) return;
  printf("B %ld T %ld N %ld K %ld S %ld H %ld window %ld cap %g whole %d: %s\n", (long)a->B, (long)a->T, (long)a->N, (long)a->K,
         (long)a->S, (long)a->H, (long)a->window, a->cap, a->key_scale != NULL, what);
}

static void all(const Attention* a) {
  XLA_FFI_CallFrame call = {0};
  in_pieces(&call, a->key_scale ? of_whole : of_floats, a, a->B * a->K, 0);
}

// On a thread that keeps no numbers below the normal ones, as XLA's do.
static void all_flushed(const Attention* a) {
#if defined(__x86_64__)
  const uint32_t before = _mm_getcsr();
  _mm_setcsr(before | 0x8040);
  all(a);
  expect(_mm_getcsr() == (before | 0x8040), a, "another rounding behind it");
  _mm_setcsr(before);
#elif defined(__aarch64__)
  rounding_as(1 << 24);
  all(a);
  rounding_as(0);
#else
  all(a);
#endif
}

// A row by itself, in a cache of its own size, whose vectors end where memory does.
static void alone(const Attention* a, int64_t row) {
  const int64_t vectors = row * a->K * a->S, queries = row * a->T * a->N * a->H, width = a->key_scale ? 1 : sizeof(float);
  const int64_t S = a->filled[row] ? a->filled[row] : 1, count = a->T * a->N * a->H;
  Attention one = *a;
  char *keys = malloc(a->K * S * a->H * width), *values = malloc(a->K * S * a->H * width);
  float *key_scale = malloc(a->K * S * sizeof(float)), *value_scale = malloc(a->K * S * sizeof(float));
  for (int64_t k = 0; k < a->K; k++) {
    const int64_t from = (vectors + k * a->S) * a->H * width, to = k * S * a->H * width;
    memcpy(keys + to, (const char*)a->keys + from, S * a->H * width);
    memcpy(values + to, (const char*)a->values + from, S * a->H * width);
    if (a->key_scale) memcpy(key_scale + k * S, a->key_scale + vectors + k * a->S, S * sizeof(float));
    if (a->key_scale) memcpy(value_scale + k * S, a->value_scale + vectors + k * a->S, S * sizeof(float));
  }
  one.B = 1, one.S = S, one.q += queries, one.at += row * a->T, one.positions += row * a->S, one.filled += row;
  one.keys = keys, one.values = values, one.mixed = malloc(count * sizeof(float));
  if (a->key_scale) one.key_scale = key_scale, one.value_scale = value_scale;
  all(&one);
  expect(!memcmp(one.mixed, a->mixed + queries, count * sizeof(float)), a, "other bits alone");
  free(keys), free(values), free(key_scale), free(value_scale), free(one.mixed);
}

static void check(int64_t B, int64_t T, int64_t G, int64_t K, int64_t S, int64_t H, bool whole) {
  const int64_t vectors = B * K * S, N = G * K, queries = B * T * N;
  float *q = drawn(queries * H, 1), *sinks = drawn(N, 3);
  int32_t *at = malloc(B * T * sizeof *at), *positions = malloc(B * S * sizeof *positions), *filled = malloc(B * sizeof *filled);
  void *keys = whole ? (void*)drawn_whole(vectors * H) : drawn(vectors * H, 1);
  const float size = draw() % 3 ? 1 : 1e-38f;
  void *values = whole ? (void*)drawn_whole(vectors * H) : drawn(vectors * H, size);
  float *key_scale = drawn(vectors, 0.02f), *value_scale = drawn(vectors, 0.02f * size);
  for (int64_t n = 0; n < N; n++)
    if (draw() % 2) sinks[n] = -INFINITY;
  for (int64_t row = 0; row < B; row++) {
    const int64_t held = draw() % 5 ? T + draw() % S : 0;  // 0: a row that rests
    filled[row] = (int32_t)(held < S ? held : S);
    for (int64_t slot = 0; slot < S; slot++)  // a ring, whose slots hold the last positions
      positions[row * S + slot] = slot < filled[row] ? (int32_t)(held - 1 - (held - 1 - slot) % S) : -1;
    for (int64_t t = 0; t < T; t++) at[row * T + t] = (int32_t)(held - T + t);
  }
  Attention a = {.q = q, .keys = keys, .values = values, .at = at, .positions = positions, .filled = filled, .sinks = sinks,
                 .mixed = malloc(queries * H * sizeof(float)), .B = B, .T = T, .N = N, .K = K, .S = S, .H = H,
                 .scale = 1 / sqrtf((float)H), .cap = draw() % 2 ? 0 : 4, .window = draw() % 2 ? 0 : 1 + draw() % S};
  if (whole) a.key_scale = key_scale, a.value_scale = value_scale;
  all(&a);
  double *mixed = malloc(H * sizeof *mixed), off;
  for (int64_t row = 0; row < B; row++) {
    for (int64_t one = 0; one < T * N; one++) {
      plain(&a, row, one / N, one % N, mixed, &off);
      for (int64_t h = 0; h < H; h++)
        expect(fabs(a.mixed[(row * T * N + one) * H + h] - mixed[h]) <= off, &a, "another number than plain C's");
    }
    alone(&a, row);
  }
  Attention flushed = a;
  flushed.mixed = malloc(queries * H * sizeof(float));
  all_flushed(&flushed);
  expect(!memcmp(flushed.mixed, a.mixed, queries * H * sizeof(float)), &a, "other bits on such a thread");
  free(flushed.mixed);
  free(q), free(sinks), free(at), free(positions), free(filled), free(keys), free(values), free(key_scale), free(value_scale);
  free(a.mixed), free(mixed);
}

int main(void) {
  static const int64_t heads[] = {1, 7, 8, 12, 16, 31, 32, 64, 65, 80, 128, 130};
  static const int64_t slots[] = {1, 2, 15, 16, 255, 256, 257, 600};
  for (int whole = 0; whole < 2; whole++)
    for (size_t h = 0; h < sizeof heads / sizeof *heads; h++)
      for (size_t s = 0; s < sizeof slots / sizeof *slots; s++)
        check(1 + draw() % 3, 1 + draw() % 3, 1 + draw() % 3, 1 + draw() % 2, slots[s], heads[h], whole);
  printf("vectors of %d, %d failed\n", L, failed);
  return failed != 0;
}
