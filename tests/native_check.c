// The products of every instruction set that this processor has, held against their definition in plain C; then shared by
// threads, some of which come late. Compiled with sanitizers by `make native-check`, for other processors too.
#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include "product.c"
#include "native_random.h"

static uint16_t to_bf16(float value) { return (uint16_t)(as_bits(value) >> 16); }
static uint16_t to_f16(float value) {  // the nearest that is not larger
  const uint16_t sign = (uint16_t)(as_bits(value) >> 16 & 0x8000);
  value = fabsf(value);
  if (value >= 65504) return sign | 0x7bff;
  if (value < 0x1p-14f) return sign | (uint16_t)(value * 0x1p24f);
  return sign | (uint16_t)((as_bits(value) - (112u << 23)) >> 13);
}

// what stands in x and the weight
typedef enum { NORMAL, ZEROS, TINY, SMALLEST, LARGE, OUTLIER, KINDS } Kind;
static float value_of(Kind kind, int64_t i) {
  switch (kind) {
    case ZEROS: return 0;
    case TINY: return normal() * 1e-30f;
    case SMALLEST: return as_float(draw() & 0x807fffffu);  // denormal
    case LARGE: return normal() * 1e15f;
    case OUTLIER: return i == 3 ? 5000 : normal();
    default: return normal();
  }
}

static void fill(Form form, Kind kind, char* w, int64_t numbers) {
  for (int64_t i = 0; i < numbers; i++) {
    const float value = value_of(kind, i);
    if (form == F32) memcpy(w + 4 * i, &value, 4);
    if (form == BF16 || form == F16) {
      uint16_t bits = form == BF16 ? to_bf16(value) : kind == SMALLEST ? (uint16_t)(draw() & 0x83ff) : to_f16(value);
      memcpy(w + 2 * i, &bits, 2);
    }
    if (form >= S8) w[i * BITS[form] / 8] = kind == ZEROS ? 0 : kind == LARGE ? (char)(draw() & 1 ? -128 : 127) : (char)draw();
  }
}

static int failed = 0;
static void expect(bool right, const char* path, Form form, Kind kind, int64_t R, int64_t O, int64_t I, const char* what) {
  if (right) return;
  if (failed++ < 20) printf("%s form %d kind %d R %ld O %ld I %ld: %s\n", path, form, kind, (long)R, (long)O, (long)I, what);
}

typedef struct {
  float *x, *y, *reference;
  char *w, *scale, *offset;
  Number scales, offsets;
  int64_t R, O, I, group;
} Case;
static char* floats(Kind kind, Number number, int64_t count) {
  char* made = malloc(count * SIZE[number]);
  for (int64_t g = 0; g < count; g++) {
    const float value = kind == TINY ? normal() * 1e-6f : normal();
    const uint16_t bits = number == HALF ? to_f16(value) : to_bf16(value);
    memcpy(made + g * SIZE[number], number == FLOAT ? (const void*)&value : &bits, SIZE[number]);
  }
  return made;
}
static Case make(Form form, Kind kind, int64_t R, int64_t O, int64_t I, int64_t group) {
  Case c = {malloc(R * I * 4), malloc(R * O * 4), malloc(R * O * 4), malloc(O * I * BITS[form] / 8), .R = R, .O = O, .I = I};
  for (int64_t r = 0; r < R; r++)
    for (int64_t i = 0; i < I; i++) c.x[r * I + i] = value_of(kind == LARGE && form == F16 ? NORMAL : kind, i);
  fill(form, kind, c.w, O * I);
  if (form >= G8) {
    c.group = group, c.scales = draw() % NUMBERS, c.offsets = draw() % NUMBERS;
    c.scale = floats(kind, c.scales, O * I / group);
    if (draw() % 2) c.offset = floats(kind, c.offsets, O * I / group);
  }
  return c;
}
static void end_case(Case* c) { free(c->x), free(c->y), free(c->reference), free(c->w), free(c->scale), free(c->offset); }
static Product of(const Case* c, int64_t R, float* y) {
  Product p = {.w = c->w, .y = y, .R = R, .O = c->O, .I = c->I, .scale = {c->scale, c->scales}, .offset = {c->offset, c->offsets}};
  if (c->group) p.group = c->group, p.groups = c->I / c->group;
  return p;
}

// In place of XLA: a pool whose threads begin when they like; every fifth task is refused.
static pthread_t begun[4096];
static size_t count, refusals;
typedef struct { XLA_FFI_Task* task; void* data; unsigned wait; } Late;
static void* late(void* given) {
  Late one = *(Late*)given;
  free(given);
  for (unsigned turn = 0; turn < one.wait; turn++) sched_yield();
  one.task(one.data);
  return NULL;
}
static XLA_FFI_Error* refuse(void) { return ++refusals, malloc(1); }
static void forget(XLA_FFI_Error_Destroy_Args* args) { refusals--, free(args->error); }
static XLA_FFI_Error* schedule(XLA_FFI_ThreadPool_Schedule_Args* args) {
  if (count == sizeof begun / sizeof *begun || draw() % 5 == 0) return refuse();
  Late* one = malloc(sizeof *one);
  *one = (Late){args->task, args->data, draw() % 64};
  if (pthread_create(&begun[count], NULL, late, one)) return free(one), refuse();
  return ++count, NULL;
}
static XLA_FFI_Error* five(XLA_FFI_ThreadPool_NumThreads_Args* args) { return *args->num_threads = 5, NULL; }
static XLA_FFI_Error* one(XLA_FFI_ThreadPool_NumThreads_Args* args) { return *args->num_threads = 1, NULL; }
static const XLA_FFI_Api MANY = {.XLA_FFI_ThreadPool_Schedule = schedule, .XLA_FFI_ThreadPool_NumThreads = five,
                                 .XLA_FFI_Error_Destroy = forget};
static const XLA_FFI_Api SINGLE = {.XLA_FFI_ThreadPool_NumThreads = one};

static void run(const Path* path, Form form, const float* x, const Case* c, float* y, int64_t R, const XLA_FFI_Api* api) {
  XLA_FFI_CallFrame call = {.api = api};
  if (!multiply(path, form, of(c, R, y), x, &call)) abort();
}

// How far a float32 sum of 8 lanes may be from the exact one: six deviations of its roundings, which walk at random.
static void compare(const Path* path, Form form, Kind kind, Case* c) {
  run(&plain, form, c->x, c, c->reference, c->R, &SINGLE);
  run(path, form, c->x, c, c->y, c->R, &SINGLE);
  int16_t* rounded = malloc(c->I * 2);
  for (int64_t r = 0; r < c->R; r++) {
    const double unit = form < S8 ? 1 : round_row(c->x + r * c->I, rounded, c->I, c->I) / (double)MOST;
    const Product p = of(c, c->R, c->y);
    for (int64_t o = 0; o < c->O; o++) {
      double size = 0;
      for (int64_t i = 0; i < c->I; i++) {
        size += fabs(plain_weight(form, &p, o, i) * (form < S8 ? c->x[r * c->I + i] : rounded[i] * unit));
        if (c->offset)  // which is added for all inputs of a group, and may leave little of scale * number
          size += 2 * fabs(plain_each(p.offset, o * p.groups + i / p.group) * rounded[i] * unit);
        if (form >= S8 && o == 0 && kind != ZEROS)  // the nearest whole number
          expect(fabs(rounded[i] * unit - c->x[r * c->I + i]) <= unit * 0.51 + 1e-45, path->name, form, kind, c->R, c->O, c->I, "x");
      }
      const double off = fabs((double)c->y[r * c->O + o] - c->reference[r * c->O + o]);
      expect(off <= size * 0x1p-24 * (4 + 6 * sqrt(c->I / 8.0)) + c->I * 1e-45, path->name, form, kind, c->R, c->O, c->I, "another number than plain C's");
    }
  }
  free(rounded);
}

// A row alone has the bits that it has beside others.
static void alone(const Path* path, Form form, Kind kind, Case* c) {
  float* y = malloc(c->O * 4);
  for (int64_t r = 0; r < c->R; r++) {
    run(path, form, c->x + r * c->I, c, y, 1, &SINGLE);
    expect(!memcmp(y, c->y + r * c->O, c->O * 4), path->name, form, kind, c->R, c->O, c->I, "other bits alone");
  }
  free(y);
}

// Rows of several experts have the bits that they have with their own alone, whatever the sizes say; those of none are zeros.
static void by_expert(const Path* path, Form form) {
  enum { E = 5, R = 9, O = 3, I = 96 };
  static const int32_t sizes[][E] = {{2, 0, 3, 4, 0}, {0, 0, 0, 0, 9}, {1, -7, 2, 0, 3}, {4, 400, 1, 1, 1}, {0, 0, 0, 0, 0}};
  for (size_t n = 0; n < sizeof sizes / sizeof *sizes; n++) {
    Case c = make(form, NORMAL, R, E * O, I, PACKED);
    memset(c.reference, 0, sizeof(float) * R * O);
    Case own = c;
    own.O = O;
    int64_t r = 0;
    for (int e = 0; e < E; e++) {
      const int64_t rows = sizes[n][e] < 0 ? 0 : sizes[n][e] < R - r ? sizes[n][e] : R - r;
      if (rows) run(path, form, c.x + r * I, &own, c.reference + r * O, rows, &SINGLE);
      r += rows, own.w += bytes_of(form, O * I);
      if (c.scale) own.scale += O * I / PACKED * SIZE[c.scales];
      if (c.offset) own.offset += O * I / PACKED * SIZE[c.offsets];
    }
    own = c, own.O = O;
    XLA_FFI_CallFrame call = {.api = &MANY};
    if (!multiply_by_expert(path, form, of(&own, R, c.y), c.x, sizes[n], E, &call)) abort();
    expect(!memcmp(c.y, c.reference, sizeof(float) * R * O), path->name, form, NORMAL, R, O, I, "other bits by expert");
    end_case(&c);
  }
}

int main(void) {
  static const int64_t inputs[] = {1, 2, 7, 31, 32, 33, 63, 64, 65, 200, 2047, 2048, 4129};
  static const int64_t grouped[][2] = {{32, 32}, {64, 32}, {96, 32}, {96, 96}, {2048, 32}, {2112, 32}, {4128, 32}, {4128, 96},
                                       {256, 64}, {1408, 128}, {4224, 2112}, {6400, 6400}};
  const char* best = nanollm_choose(NULL);
  for (size_t at = 0; at + 1 < sizeof PATHS / sizeof *PATHS; at++) {
    const Path* path = PATHS[at];
    if (!path->has()) continue;
    printf("%s\n", path->name);
    for (Form form = F32; form < FORMS; form++)
      for (Kind kind = 0; kind < KINDS; kind++) {
        const size_t many = form >= G8 ? sizeof grouped / sizeof *grouped : sizeof inputs / sizeof *inputs;
        for (size_t n = 0; n < many; n++) {
          const int64_t I = form >= G8 ? grouped[n][0] : inputs[n], group = form >= G8 ? grouped[n][1] : 0;
          Case c = make(form, kind, 1 + draw() % 9, 1 + draw() % 5, I, group);
          compare(path, form, kind, &c), alone(path, form, kind, &c), end_case(&c);
        }
      }
    for (Form form = F32; form < FORMS; form++) by_expert(path, form);
    // shared by threads, the same bits
    for (Form form = F32; form < FORMS; form++)
      for (int64_t R = 1; R <= 40; R += R < 3 ? 1 : 37) {  // x is laid out by threads, too, where it is large
        Case c = make(form, NORMAL, R, R > 3 ? 65 : 601, 1024, 64);
        run(path, form, c.x, &c, c.y, R, &SINGLE);
        run(path, form, c.x, &c, c.reference, R, &MANY);
        expect(!memcmp(c.y, c.reference, R * c.O * 4), path->name, form, NORMAL, R, c.O, c.I, "other bits on threads");
        end_case(&c);
      }
  }
  for (size_t n = 0; n < count; n++) pthread_join(begun[n], NULL);
  expect(refusals == 0, "all", 0, 0, 0, 0, 0, "a refusal that was not forgotten");
  expect(nanollm_choose("none") == NULL && nanollm_choose("plain") && count, "all", 0, 0, 0, 0, 0, "choice");
  printf("best %s, %d failed\n", best, failed);
  return failed != 0;
}
