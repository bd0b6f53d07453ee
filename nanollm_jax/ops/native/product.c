// Rows of activations times a weight that is read in the form in which it is kept: y[r, o] = sum over i of x[r, i] * w[o, i].
//
// 1. The forms of a weight, the definition in plain C, and how x is laid out.
// 2. One section for each instruction set, a dozen words; this file includes itself there, and its last part, the product
//    written in these words, is compiled for each of them. Which of them runs is chosen by the processor at hand.
// 3. One product shared by XLA's threads, and the functions that XLA calls.
// 4. The product.
//
// A row's bits depend on x's row, the weight and the instruction set: not on the number of rows or threads, nor on which row
// it is. Every sum is taken in one order: inputs in steps, lane by lane, two sums in turns, added up at the end; what is
// rounded once is written as one word, so that no compiler decides it.
#ifndef PATH
#include <stdbool.h>
#include <string.h>

#include "threads.h"
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#endif

// 1. Forms ------------------------------------------------------------------------------------------------------------------

// F32: of experts alone, whose weights XLA would copy.  S8: whole numbers; their one scale per output comes later.  G8 and G4:
// `group` inputs, a multiple of PACKED, have a scale, and may have an offset: scale * number + offset.  Of 4 bits, byte j of
// PACKED numbers has the inputs j (low bits) and j + PACKED/2, each + 8.
typedef enum { F32, BF16, F16, S8, G8, G4, FORMS } Form;
// MOST is two bytes' most; of WHOLE products of 8 and 16 bits the sum is below 2^31 in each of four lanes
enum { MOST = 127 * 257, PACKED = 32, WHOLE = 64 * PACKED };
static const int BITS[FORMS] = {32, 16, 16, 8, 8, 4};
static inline int64_t bytes_of(Form form, int64_t numbers) { return numbers * BITS[form] >> 3; }
static inline int64_t item_of(Form form) { return form < S8 ? sizeof(float) : sizeof(int16_t); }  // of x, laid out

// Scales or offsets [O groups]; none where `at` is NULL.
typedef enum { FLOAT, HALF, BRAIN, NUMBERS } Number;
static const int SIZE[NUMBERS] = {4, 2, 2};
typedef struct {
  const char* at;
  Number kind;
} Each;

// A product. x is laid out: rows of `width` floats, or for whole numbers of int16, MOST of which are most[r]; behind those of
// G4 come their bytes (split). sums [R span] are those of a group. CHUNK groups are looked at together, and span is a multiple
// of it.
enum { CHUNK = 64, LINE = 64 };  // and of bytes, those that come from memory together
typedef struct {
  const void* x;
  const float *most, *sums;
  const char* w;
  float* y;
  int64_t R, O, I, width;
  Each scale, offset;
  int64_t group, groups, span;
} Product;

// One instruction set: inputs in a step, and in one of G4 where bytes are split, whether the processor has it, x laid out for
// it, and the outputs from begin to end.
typedef struct {
  const char* name;
  int step, split;
  bool (*has)(void);
  void (*lay_out)(Form, const float* x, void* to, float* most, int64_t R, int64_t I, int64_t width);
  void (*run)(Form, const Product*, int64_t begin, int64_t end);
} Path;

// int16 of a row of so many numbers with their bytes, two and a half a number; and the other way round
#define WITH_BYTES(NUMBERS) ((NUMBERS) / 4 * 9)
#define WITHOUT_BYTES(WIDTH) ((WIDTH) / 9 * 4)

static inline float as_float(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}
static inline uint32_t as_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}
static float half(uint16_t h) {  // a float16; what is below 2^-14 is a whole number of 2^-24
  uint32_t sign = (uint32_t)(h >> 15) << 31, exponent = h >> 10 & 31, fraction = h & 1023;
  if (exponent == 31) return as_float(sign | 0x7f800000u | fraction << 13);
  if (exponent == 0) return as_float(sign | as_bits((float)fraction * 0x1p-24f));
  return as_float(sign | (exponent + 112) << 23 | fraction << 13);
}

// Floats as they are, zeros behind each row.
static void copy_row(const float* x, float* to, int64_t I, int64_t width) {
  memcpy(to, x, I * sizeof *x);
  memset(to + I, 0, (width - I) * sizeof *x);
}

// A row as whole numbers from -MOST to MOST, right to half of one; returns what MOST of them are worth, the row's largest size.
// A row with a number that is none, or infinite, is worth NaN.
static inline __attribute__((always_inline)) float round_row(const float* x, int16_t* to, int64_t I, int64_t width) {
  const float magic = 0x1.8p23f;  // a float of that size has whole numbers in its lowest bits
  int32_t largest = 0;
  for (int64_t i = 0; i < I; i++) {
    int32_t size = (int32_t)(as_bits(x[i]) & 0x7fffffffu);  // in order of size, infinity and NaN last
    largest = size > largest ? size : largest;
  }
  memset(to + I, 0, (width - I) * sizeof *to);
  if (largest == 0 || largest >= 0x7f800000) {
    memset(to, 0, I * sizeof *to);
    return largest ? as_float(0x7fc00000u) : 0;
  }
  const float size = as_float((uint32_t)largest), lift = size < 0x1p-64f ? 0x1p100f : 1;  // that 1/size is none, or 0, below
  const float times = MOST / (size * lift);
  for (int64_t i = 0; i < I; i++) {
    const float sum = __builtin_fmaf(x[i] * lift, times, magic);
    to[i] = (int16_t)(int32_t)(as_bits(sum) - as_bits(magic));
  }
  return size;
}

static void plain_lay_out(Form form, const float* x, void* to, float* most, int64_t R, int64_t I, int64_t width) {
  for (int64_t r = 0; r < R; r++)
    if (form < S8) copy_row(x + r * I, (float*)to + r * width, I, width);
    else most[r] = round_row(x + r * I, (int16_t*)to + r * width, I, width);
}

static float plain_each(Each all, int64_t at) {
  if (all.kind == FLOAT) return ((const float*)all.at)[at];
  const uint16_t bits = ((const uint16_t*)all.at)[at];
  return all.kind == HALF ? half(bits) : as_float((uint32_t)bits << 16);
}

static double plain_weight(Form form, const Product* p, int64_t o, int64_t i) {
  const char* w = p->w + o * p->I * BITS[form] / 8;
  switch (form) {
    case F32: return ((const float*)w)[i];
    case BF16: return as_float((uint32_t)((const uint16_t*)w)[i] << 16);
    case F16: return half(((const uint16_t*)w)[i]);
    case S8: return ((const int8_t*)w)[i];
    default: break;
  }
  const int64_t g = o * p->groups + i / p->group, j = i % PACKED;
  const uint8_t two = form == G4 ? (uint8_t)w[i / PACKED * (PACKED / 2) + j % (PACKED / 2)] : 0;
  const int number = form == G8 ? ((const int8_t*)w)[i] : (j < PACKED / 2 ? two & 15 : two >> 4) - 8;
  return (double)plain_each(p->scale, g) * number + (p->offset.at ? plain_each(p->offset, g) : 0);
}

static void plain_run(Form form, const Product* p, int64_t begin, int64_t end) {
  for (int64_t r = 0; r < p->R; r++)
    for (int64_t o = begin; o < end; o++) {
      double sum = 0;
      for (int64_t i = 0, at = r * p->width; i < p->I; i++, at++)
        sum += plain_weight(form, p, o, i) * (form < S8 ? ((const float*)p->x)[at] : ((const int16_t*)p->x)[at]);
      p->y[r * p->O + o] = (float)(form < S8 ? sum : sum / MOST * p->most[r]);
    }
}
static bool always(void) { return true; }
static const Path plain = {"plain", 16, 0, always, plain_lay_out, plain_run};

// 2. Instruction sets ---------------------------------------------------------------------------------------------------------

// LANES numbers in a vector; FLOAT_ROWS and WHOLE_ROWS rows are multiplied with each weight that was read, as many as there are
// registers for. wide: PACKED numbers of 16 bits.
#define JOIN_(A, B) A##_##B
#define JOIN(A, B) JOIN_(A, B)
#define MY(NAME) JOIN(PATH, NAME)
#define INLINE static inline __attribute__((always_inline, target(TARGET)))

#if defined(__x86_64__)
typedef float floats8 __attribute__((vector_size(32)));
typedef float floats16 __attribute__((vector_size(64)));
typedef uint32_t words8 __attribute__((vector_size(32)));
typedef uint32_t words16 __attribute__((vector_size(64)));
typedef struct { __m256i low, high; } numbers2;

// Has the processor all of these, of leaf 1 in ecx and of leaf 7 in ebx and ecx, and does the system keep as wide registers? Compilers
// have words for it, but those of before 2021 not for all, and zig's answers no to each.
static bool has(unsigned one_c, unsigned seven_b, unsigned seven_c, unsigned registers) {
  unsigned a, b, c, d, kept;
  if (!__get_cpuid(1, &a, &b, &c, &d) || ~c & (one_c | bit_OSXSAVE)) return false;
  __asm__("xgetbv" : "=a"(kept), "=d"(d) : "c"(0));
  if (~kept & registers || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
  return !(~b & seven_b) && !(~c & seven_c);
}

#define PATH avx2
#define TARGET "avx2,fma,f16c"
#define LANES 8
#define FLOAT_ROWS 3
#define WHOLE_ROWS 4
#define vec floats8
#define words words8
#define octets __m256i
#define whole __m256i
#define wide numbers2
static bool avx2_has(void) { return has(bit_FMA | bit_F16C, bit_AVX2, 0, 6); }
INLINE vec avx2_multiply_add(vec a, vec b, vec c) { return (vec)_mm256_fmadd_ps((__m256)a, (__m256)b, (__m256)c); }
INLINE vec avx2_halves(const void* w) { return (vec)_mm256_cvtph_ps(_mm_loadu_si128(w)); }
INLINE vec avx2_brains(const void* w) { return (vec)_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(w)), 16); }
INLINE float avx2_total(vec v) {
  __m128 sum = _mm_add_ps(_mm256_castps256_ps128((__m256)v), _mm256_extractf128_ps((__m256)v, 1));
  sum = _mm_add_ps(sum, _mm_movehl_ps(sum, sum));
  return _mm_cvtss_f32(_mm_add_ss(sum, _mm_movehdup_ps(sum)));
}
INLINE wide avx2_from_bytes(const void* w) {
  return (wide){_mm256_cvtepi8_epi16(_mm_loadu_si128(w)), _mm256_cvtepi8_epi16(_mm_loadu_si128((const __m128i*)w + 1))};
}
INLINE octets avx2_low(octets w) { return _mm256_and_si256(w, _mm256_set1_epi8(15)); }
INLINE octets avx2_high(octets w) { return avx2_low(_mm256_srli_epi16(w, 4)); }
INLINE whole avx2_dot_bytes(octets low, octets high, const octets* x) {
  const __m256i upper = _mm256_add_epi16(_mm256_maddubs_epi16(low, x[0]), _mm256_maddubs_epi16(high, x[1]));
  const __m256i lower = _mm256_add_epi16(_mm256_maddubs_epi16(low, x[2]), _mm256_maddubs_epi16(high, x[3]));
  const __m256i sum = _mm256_add_epi32(x[4], _mm256_madd_epi16(lower, _mm256_set1_epi16(1)));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(upper, _mm256_set1_epi16(256)));
}
INLINE vec avx2_each_four(const float* scale) {
  const __m256 two = _mm256_castps128_ps256(_mm_castsi128_ps(_mm_loadl_epi64((const void*)scale)));
  return (vec)_mm256_permutevar8x32_ps(two, _mm256_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1));
}
INLINE whole avx2_none(void) { return _mm256_setzero_si256(); }
INLINE whole avx2_dot(whole sum, wide w, const int16_t* x) {
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(w.low, _mm256_loadu_si256((const void*)x)));
  return _mm256_add_epi32(sum, _mm256_madd_epi16(w.high, _mm256_loadu_si256((const void*)(x + 16))));
}
INLINE vec avx2_as_floats(whole n) { return (vec)_mm256_cvtepi32_ps(n); }
#include "product.c"

#define PATH avx512
#define TARGET "avx512f,avx512bw,avx512vl,avx2,fma,f16c"
#define LANES 16
#define FLOAT_ROWS 4
#define WHOLE_ROWS 4
#define vec floats16
#define words words16
#define octets __m512i
#define whole __m512i
#define wide __m512i
static bool avx512_has(void) { return avx2_has() && has(0, bit_AVX512F | bit_AVX512BW | bit_AVX512VL, 0, 0xe6); }
INLINE vec avx512_multiply_add(vec a, vec b, vec c) { return (vec)_mm512_fmadd_ps((__m512)a, (__m512)b, (__m512)c); }
INLINE vec avx512_halves(const void* w) { return (vec)_mm512_cvtph_ps(_mm256_loadu_si256(w)); }
INLINE vec avx512_brains(const void* w) { return (vec)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(w)), 16); }
INLINE float avx512_total(vec v) { return _mm512_reduce_add_ps((__m512)v); }
INLINE wide avx512_from_bytes(const void* w) { return _mm512_cvtepi8_epi16(_mm256_loadu_si256(w)); }
INLINE octets avx512_low(octets w) { return _mm512_and_si512(w, _mm512_set1_epi8(15)); }
INLINE octets avx512_high(octets w) { return avx512_low(_mm512_srli_epi16(w, 4)); }
INLINE whole avx512_dot_bytes(octets low, octets high, const octets* x) {
  const __m512i upper = _mm512_add_epi16(_mm512_maddubs_epi16(low, x[0]), _mm512_maddubs_epi16(high, x[1]));
  const __m512i lower = _mm512_add_epi16(_mm512_maddubs_epi16(low, x[2]), _mm512_maddubs_epi16(high, x[3]));
  const __m512i sum = _mm512_add_epi32(x[4], _mm512_madd_epi16(lower, _mm512_set1_epi16(1)));
  return _mm512_add_epi32(sum, _mm512_madd_epi16(upper, _mm512_set1_epi16(256)));
}
INLINE vec avx512_each_four(const float* scale) {
  const __m512i at = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
  return (vec)_mm512_permutexvar_ps(at, _mm512_castps128_ps512(_mm_loadu_ps(scale)));
}
INLINE whole avx512_none(void) { return _mm512_setzero_si512(); }
INLINE whole avx512_dot(whole sum, wide w, const int16_t* x) {
  return _mm512_add_epi32(sum, _mm512_madd_epi16(w, _mm512_loadu_si512(x)));
}
INLINE vec avx512_as_floats(whole n) { return (vec)_mm512_cvtepi32_ps(n); }
#include "product.c"

// avx512, where one instruction multiplies whole numbers and adds them up; its floats are avx512's
#define FLOATS avx512
#define PATH vnni
#define TARGET "avx512vnni,avx512f,avx512bw,avx512vl,avx2,fma,f16c"
#define LANES 16
#define FLOAT_ROWS 4
#define WHOLE_ROWS 4
#define vec floats16
#define words words16
#define octets __m512i
#define whole __m512i
#define wide __m512i
static bool vnni_has(void) { return avx512_has() && has(0, 0, bit_AVX512VNNI, 0xe6); }
INLINE vec vnni_multiply_add(vec a, vec b, vec c) { return avx512_multiply_add(a, b, c); }
INLINE vec vnni_halves(const void* w) { return avx512_halves(w); }
INLINE vec vnni_brains(const void* w) { return avx512_brains(w); }
INLINE float vnni_total(vec v) { return avx512_total(v); }
INLINE wide vnni_from_bytes(const void* w) { return avx512_from_bytes(w); }
INLINE octets vnni_low(octets w) { return avx512_low(w); }
INLINE octets vnni_high(octets w) { return avx512_high(w); }
INLINE whole vnni_dot_bytes(octets low, octets high, const octets* x) {
  const __m512i upper = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(_mm512_setzero_si512(), low, x[0]), high, x[1]);
  const __m512i lower = _mm512_dpbusd_epi32(_mm512_dpbusd_epi32(x[4], low, x[2]), high, x[3]);
  return _mm512_add_epi32(lower, _mm512_slli_epi32(upper, 8));
}
INLINE vec vnni_each_four(const float* scale) { return avx512_each_four(scale); }
INLINE whole vnni_none(void) { return avx512_none(); }
INLINE whole vnni_dot(whole sum, wide w, const int16_t* x) { return _mm512_dpwssd_epi32(sum, w, _mm512_loadu_si512(x)); }
INLINE vec vnni_as_floats(whole n) { return avx512_as_floats(n); }
#include "product.c"
static const Path* const PATHS[] = {&vnni, &avx512, &avx2, &plain};

#elif defined(__aarch64__)
typedef float floats4 __attribute__((vector_size(16)));
typedef uint32_t words4 __attribute__((vector_size(16)));

#define PATH neon
#define TARGET "+simd"
#define LANES 4
#define FLOAT_ROWS 4
#define WHOLE_ROWS 4
#define vec floats4
#define words words4
#define octets int8x16_t
#define whole int32x4_t
#define wide int16x8x4_t
static bool neon_has(void) { return true; }
INLINE vec neon_multiply_add(vec a, vec b, vec c) { return (vec)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b); }
INLINE vec neon_halves(const void* w) { return (vec)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(w))); }
INLINE vec neon_brains(const void* w) { return (vec)vshlq_n_u32(vmovl_u16(vld1_u16(w)), 16); }
INLINE float neon_total(vec v) { return vaddvq_f32((float32x4_t)v); }
INLINE wide neon_both(int8x16_t a, int8x16_t b) {
  return (wide){{vmovl_s8(vget_low_s8(a)), vmovl_high_s8(a), vmovl_s8(vget_low_s8(b)), vmovl_high_s8(b)}};
}
INLINE wide neon_from_bytes(const void* w) { return neon_both(vld1q_s8(w), vld1q_s8((const int8_t*)w + 16)); }
INLINE octets neon_low(octets w) { return vandq_s8(w, vdupq_n_s8(15)); }
INLINE octets neon_high(octets w) { return vreinterpretq_s8_u8(vshrq_n_u8(vreinterpretq_u8_s8(w), 4)); }
INLINE int32x4_t neon_products(octets low, octets high, const octets* x) {
  int16x8_t sum = vmlal_high_s8(vmull_s8(vget_low_s8(low), vget_low_s8(x[0])), low, x[0]);
  sum = vmlal_high_s8(vmlal_s8(sum, vget_low_s8(high), vget_low_s8(x[1])), high, x[1]);
  return vpaddlq_s16(sum);
}
INLINE whole neon_dot_bytes(octets low, octets high, const octets* x) {
  const int32x4_t sum = vaddq_s32(vreinterpretq_s32_s8(x[4]), neon_products(low, high, x + 2));
  return vaddq_s32(sum, vshlq_n_s32(neon_products(low, high, x), 8));
}
INLINE vec neon_each_four(const float* scale) { return (vec)vld1q_dup_f32(scale); }
INLINE whole neon_none(void) { return vdupq_n_s32(0); }
INLINE whole neon_dot(whole sum, wide w, const int16_t* x) {
  for (int part = 0; part < 4; part++) {
    const int16x8_t numbers = vld1q_s16(x + 8 * part);
    sum = vmlal_high_s16(vmlal_s16(sum, vget_low_s16(w.val[part]), vget_low_s16(numbers)), w.val[part], numbers);
  }
  return sum;
}
INLINE vec neon_as_floats(whole n) { return (vec)vcvtq_f32_s32(n); }
#include "product.c"
static const Path* const PATHS[] = {&neon, &plain};

#else
static const Path* const PATHS[] = {&plain};
#endif

// 3. Threads and XLA ----------------------------------------------------------------------------------------------------------

static const Path* chosen = &plain;

static const Path* path_of(const char* name) {
  for (size_t at = 0; at < sizeof PATHS / sizeof *PATHS; at++)
    if ((!name || !strcmp(name, PATHS[at]->name)) && PATHS[at]->has()) return PATHS[at];
  return NULL;
}

// Take the instruction set of this name from now on, or for NULL the best that the processor has. Returns its name; NULL, and
// nothing changes, where there is none of that name here.
const char* nanollm_choose(const char* name) {
  const Path* found = path_of(name);
  return found ? (chosen = found)->name : NULL;
}

typedef struct {
  Product product;
  const Path* path;
  Form form;
  int64_t outputs;  // of a piece
} Job;

static void of_outputs(const void* given, int64_t piece) {
  const Job* job = given;
  const int64_t begin = piece * job->outputs, end = begin + job->outputs, O = job->product.O;
  job->path->run(job->form, &job->product, begin, end < O ? end : O);
}

// How many outputs are a piece. A row alone reads memory straight through, in few long pieces, each a thread's alone; of more
// rows each multiplies what the processor's cache still has.
static int64_t piece_of(int64_t R, int64_t O, int64_t row_bytes, int64_t threads) {
  enum { PIECES = 4, LEAST = 1 << 14, CACHED = 1 << 16 };
  int64_t bytes = O * row_bytes / (PIECES * threads);
  if (bytes < LEAST) bytes = LEAST;
  if (R > 1 && bytes > CACHED) bytes = CACHED;
  const int64_t outputs = bytes / row_bytes / 2 * 2;
  return outputs < 2 ? 2 : outputs;
}

// An offset counts as often as the sum of its group's inputs.
static void sum_groups(const Product* p, const int16_t* x, float* sums) {
  memset(sums, 0, (size_t)p->span * sizeof *sums);
  for (int64_t g = 0; g < p->groups; g++) {
    int64_t sum = 0;
    for (int64_t i = 0; i < p->group; i++) sum += x[g * p->group + i];
    sums[g] = (float)sum;
  }
}

enum { ROWS_AT_ONCE = 8 };  // that a thread lays out before it takes the next ones
typedef struct {
  const Product* product;
  const Path* path;
  Form form;
  const float* x;
  char* to;
  float *most, *sums;
} Rows;

static void lay_out_rows(const void* given, int64_t piece) {
  const Rows* all = given;
  const Product* p = all->product;
  const int64_t first = piece * ROWS_AT_ONCE, last = first + ROWS_AT_ONCE < p->R ? first + ROWS_AT_ONCE : p->R;
  char* to = all->to + first * p->width * item_of(all->form);
  all->path->lay_out(all->form, all->x + first * p->I, to, all->most + first, last - first, p->I, p->width);
  for (int64_t r = first; p->offset.at && r < last; r++)
    sum_groups(p, (const int16_t*)all->to + r * p->width, all->sums + r * p->span);
}

// All of a product, on XLA's threads; p has its sizes, weight and result. false where there is no memory for it.
static bool multiply(const Path* path, Form form, Product p, const float* x, XLA_FFI_CallFrame* call) {
  const int64_t R = p.R, O = p.O, I = p.I;
  p.width = (I + path->step - 1) / path->step * path->step;
  if (form == G4 && path->split) p.width = WITH_BYTES((I + path->split - 1) / path->split * path->split);
  p.span = p.offset.at ? (p.groups + CHUNK - 1) / CHUNK * CHUNK : 0;
  const int64_t laid_out = R * p.width * item_of(form), each = (1 + p.span) * (int64_t)sizeof(float);
  char* memory = aligned_alloc(LINE, (size_t)(laid_out + R * each + LINE - 1) / LINE * LINE);
  if (!memory) return false;
  float *sums = (float*)(memory + laid_out), *most = sums + R * p.span;  // steps are of 16 numbers at least
  const Rows rows = {&p, path, form, x, memory, most, sums};
  in_pieces(call, lay_out_rows, &rows, (R + ROWS_AT_ONCE - 1) / ROWS_AT_ONCE, R * I * (int64_t)sizeof *x);
  p.x = memory, p.most = most, p.sums = sums;
  const int64_t row_bytes = bytes_of(form, I);
  const Job job = {p, path, form, piece_of(R, O, row_bytes, threads_of(call))};
  in_pieces(call, of_outputs, &job, (O + job.outputs - 1) / job.outputs, O * row_bytes);
  free(memory);
  return true;
}

// The same with E weights, one behind the other: the first sizes[0] rows are multiplied with the first weight, and so on; what
// rows are left become zeros.
static bool multiply_by_expert(const Path* path, Form form, Product p, const float* x, const int32_t* sizes, int64_t E,
                               XLA_FFI_CallFrame* call) {
  const int64_t each = p.O * p.groups;
  int64_t left = p.R;
  for (int64_t e = 0; e < E; e++) {
    p.R = sizes[e] < 0 ? 0 : sizes[e] < left ? sizes[e] : left;
    if (p.R && !multiply(path, form, p, x, call)) return false;
    x += p.R * p.I, p.y += p.R * p.O, left -= p.R;
    p.w += bytes_of(form, p.O * p.I);
    if (p.scale.at) p.scale.at += each * SIZE[p.scale.kind];
    if (p.offset.at) p.offset.at += each * SIZE[p.offset.kind];
  }
  memset(p.y, 0, (size_t)(left * p.O) * sizeof *p.y);
  return true;
}

static Each each(const XLA_FFI_Buffer* all) {
  return (Each){all->data, all->dtype == XLA_FFI_DataType_F32 ? FLOAT : all->dtype == XLA_FFI_DataType_F16 ? HALF : BRAIN};
}

static XLA_FFI_Error* product(XLA_FFI_CallFrame* call, Form form) {
  if (only_asked(call)) return NULL;
  XLA_FFI_Buffer** in = (XLA_FFI_Buffer**)call->args.args;
  const XLA_FFI_Buffer *x = in[0], *w = in[1], *y = call->rets.rets[0];
  const bool experts = w->rank > 2;  // [E O I], and last of all how many rows each has
  const int64_t last = call->args.size - 1, given = experts ? last : last + 1;
  Product p = {.w = w->data, .y = y->data, .R = x->dims[0], .O = w->dims[w->rank - 2], .I = x->dims[1]};
  if (form >= G8) p.scale = each(in[2]), p.groups = in[2]->dims[w->rank - 1], p.group = p.I / p.groups;
  if (form >= G8 && given > 3) p.offset = each(in[3]);
  if (experts ? multiply_by_expert(chosen, form, p, x->data, in[last]->data, w->dims[0], call)
              : multiply(chosen, form, p, x->data, call))
    return NULL;
  XLA_FFI_Error_Create_Args error = {.struct_size = sizeof error, .message = "no memory for the rows of a product",
                                     .errc = XLA_FFI_Error_Code_RESOURCE_EXHAUSTED};
  return call->api->XLA_FFI_Error_Create(&error);
}

XLA_FFI_Error* nanollm_f32(XLA_FFI_CallFrame* call) { return product(call, F32); }
XLA_FFI_Error* nanollm_bf16(XLA_FFI_CallFrame* call) { return product(call, BF16); }
XLA_FFI_Error* nanollm_f16(XLA_FFI_CallFrame* call) { return product(call, F16); }
XLA_FFI_Error* nanollm_s8(XLA_FFI_CallFrame* call) { return product(call, S8); }
XLA_FFI_Error* nanollm_g8(XLA_FFI_CallFrame* call) { return product(call, G8); }
XLA_FFI_Error* nanollm_g4(XLA_FFI_CallFrame* call) { return product(call, G4); }

#else
// 4. The product, in the words of one instruction set -------------------------------------------------------------------------

enum { MY(STEP) = 2 * LANES > PACKED ? 2 * LANES : PACKED };  // inputs; a step of floats is 2 * LANES of them
enum { MY(SPLIT) = 8 * LANES };  // inputs in a step of G4, a vector of their weights: LANES / 4 times PACKED

// Whole numbers of 16 bits become 256 times an upper byte and a lower one. For each step there are five vectors: upper bytes of
// the inputs whose weights are low bits, of those that are high bits, lower bytes alike, and what the 8 in each weight comes to.
static inline __attribute__((always_inline)) void MY(split)(const int16_t* x, int64_t width, int8_t* to) {
  enum { HALF_PACKED = PACKED / 2, VECTOR = 4 * LANES };
  for (int64_t i = 0; i < width; i += MY(SPLIT), to += 5 * VECTOR)
    for (int part = 0; part < LANES / 4; part++) {
      int32_t less[4] = {0};
      for (int high = 0; high < 2; high++, x += HALF_PACKED) {
        int8_t *upper = to + high * VECTOR + part * HALF_PACKED, *lower = upper + 2 * VECTOR;
        for (int j = 0; j < HALF_PACKED; j++) upper[j] = (int8_t)((x[j] + 128) >> 8), lower[j] = (int8_t)x[j];
        for (int j = 0; j < HALF_PACKED; j++) less[0] -= 8 * x[j];
      }
      memcpy(to + 4 * VECTOR + part * HALF_PACKED, less, sizeof less);
    }
}

// bfloat16 comes two to a word: the first after a shift, the second as it stands but for its lower bits. So x is parted alike.
static __attribute__((target(TARGET))) void MY(lay_out)(Form form, const float* x, void* to, float* most, int64_t R, int64_t I,
                                                        int64_t width) {
  for (int64_t r = 0; r < R; r++, x += I) {
    if (form >= S8) {
      int16_t* row = (int16_t*)to + r * width;
      const int64_t numbers = form == G4 ? WITHOUT_BYTES(width) : width;
      most[r] = round_row(x, row, I, numbers);
      if (form == G4) MY(split)(row, numbers, (int8_t*)(row + numbers));
      continue;
    }
    float* row = (float*)to + r * width;
    if (form != BF16) {
      copy_row(x, row, I, width);
      continue;
    }
    int64_t i = 0;
    for (; i + 2 * LANES <= I; i += 2 * LANES)
      for (int lane = 0; lane < LANES; lane++) row[i + lane] = x[i + 2 * lane], row[i + LANES + lane] = x[i + 2 * lane + 1];
    for (; i < width; i += 2 * LANES)
      for (int lane = 0; lane < 2 * LANES; lane++) {
        const int64_t from = i + (lane < LANES ? 2 * lane : 2 * (lane - LANES) + 1);
        row[i + lane] = from < I ? x[from] : 0;
      }
  }
}

INLINE vec MY(load)(const void* from) {
  vec value;
  memcpy(&value, from, sizeof value);
  return value;
}

// Two outputs are read at a time, which to the processor are two short streams that end before it has seen where they lead. So
// while one pair is read the next is asked for, straight through: half as fast without. What is long goes to the larger cache.
INLINE void MY(ahead)(const char* pair, int64_t bytes, int64_t at) {
  enum { MARGIN = 512, SHORT = 4096 };
  if (bytes <= SHORT) __builtin_prefetch(pair + bytes + at + MARGIN, 0, 3);
  else __builtin_prefetch(pair + bytes + at + MARGIN, 0, 2);
}

// 2 * LANES weights as floats
INLINE void MY(widen)(const Form form, const char* w, vec to[2]) {
  if (form == F32) {
    to[0] = MY(load)(w), to[1] = MY(load)(w + sizeof(vec));
  } else if (form == F16) {
    to[0] = MY(halves)(w), to[1] = MY(halves)(w + sizeof(vec) / 2);
  } else {
    const words two = (words)MY(load)(w);
    to[0] = (vec)(two << 16), to[1] = (vec)(two & 0xffff0000u);
  }
}

// `rows` rows by `outputs` outputs: one step further, and all of it. Both are constants where it is called.
INLINE void MY(float_step)(const Form form, const int rows, const int outputs, const float* x, int64_t width, const char* w,
                           int64_t stride, vec sum[][2][2]) {
  vec weight[2][2];
#pragma GCC unroll 8
  for (int n = 0; n < outputs; n++) MY(widen)(form, w + n * stride, weight[n]);
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int part = 0; part < 2; part++) {
      const vec numbers = MY(load)(x + m * width + part * LANES);
#pragma GCC unroll 8
      for (int n = 0; n < outputs; n++) sum[m][n][part] = MY(multiply_add)(numbers, weight[n][part], sum[m][n][part]);
    }
}

INLINE void MY(float_tile)(const Form form, const int rows, const int outputs, const Product* p, int64_t r, int64_t o) {
  enum { STEP = 2 * LANES };
  const int64_t size = BITS[form] / 8, stride = p->I * size, whole_steps = p->I / STEP * STEP;
  const float* x = (const float*)p->x + r * p->width;
  const char* w = p->w + o * stride;
  vec sum[FLOAT_ROWS][2][2];
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < outputs; n++) sum[m][n][0] = sum[m][n][1] = (vec){0};
  for (int64_t i = 0; i < whole_steps; i += STEP) {
#pragma GCC unroll 8
    for (int n = 0; n < outputs; n++) MY(ahead)(w, outputs * stride, (outputs * i + n * STEP) * size);
    MY(float_step)(form, rows, outputs, x + i, p->width, w + i * size, stride, sum);
  }
  if (whole_steps < p->I) {  // what is behind the last input belongs to the next output, or to nobody
    char rest[2][STEP * sizeof(float)] = {0};
    for (int n = 0; n < outputs; n++) memcpy(rest[n], w + n * stride + whole_steps * size, (p->I - whole_steps) * size);
    MY(float_step)(form, rows, outputs, x + whole_steps, p->width, rest[0], sizeof rest[0], sum);
  }
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < outputs; n++) p->y[(r + m) * p->O + o + n] = MY(total)(sum[m][n][0] + sum[m][n][1]);
}

// The same with whole numbers, PACKED further in each step; sums are exact until they become floats.
INLINE void MY(whole_step)(const int rows, const int outputs, const int16_t* x, int64_t width, const char* w,
                           int64_t stride, whole exact[][2]) {
#pragma GCC unroll 8
  for (int n = 0; n < outputs; n++) {
    const wide weight = MY(from_bytes)(w + n * stride);
#pragma GCC unroll 8
    for (int m = 0; m < rows; m++) exact[m][n] = MY(dot)(exact[m][n], weight, x + m * width);
  }
}

// The inputs from `begin` to `end`, not more than WHOLE of them; all steps are whole but the last one of S8.
INLINE void MY(whole_span)(const Form form, const int rows, const int outputs, const Product* p, const int16_t* x, const char* w,
                           int64_t begin, int64_t end, whole exact[][2]) {
  const int64_t stride = p->I;
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < outputs; n++) exact[m][n] = MY(none)();
  int64_t i = begin;
  for (; i + PACKED <= end; i += PACKED) {
    MY(ahead)(w, outputs * stride, outputs * i);
    MY(whole_step)(rows, outputs, x + i, p->width, w + i, stride, exact);
  }
  if (form == S8 && i < end) {
    char rest[2][PACKED] = {0};
    for (int n = 0; n < outputs; n++) memcpy(rest[n], w + n * stride + i, end - i);
    MY(whole_step)(rows, outputs, x + i, p->width, rest[0], sizeof rest[0], exact);
  }
}

// What `count` groups have, from the first on, as floats; zeros up to the next multiple of LANES.
static __attribute__((target(TARGET), noinline)) void MY(floats_of)(const Product* p, Each all, int64_t first, int64_t count,
                                                                    float* to) {
  const char* from = all.at + first * SIZE[all.kind];
  char rest[CHUNK * sizeof(float)];
  if (first + CHUNK > p->O * p->groups) from = memcpy(rest, from, count * SIZE[all.kind]);  // behind the last there is nothing
  for (int64_t g = 0; g < count; g += LANES) {
    vec found;
    if (all.kind == FLOAT) found = MY(load)(from + g * 4);
    else found = all.kind == HALF ? MY(halves)(from + g * 2) : MY(brains)(from + g * 2);
    memcpy(to + g, &found, sizeof found);
  }
  for (int64_t g = count; g % LANES; g++) to[g] = 0;
}

// Sums over `count` groups of bytes from the first on, each with its scale.
INLINE void MY(groups_of)(const int rows, const int outputs, const Product* p, const int16_t* x, const char* w, int64_t first,
                          int64_t count, const int64_t group, float scale[][CHUNK], vec sum[][2]) {
  for (int64_t g = 0; g < count; g++)
    for (int64_t i = (first + g) * group, last = i + group; i < last; i += WHOLE) {
      whole exact[WHOLE_ROWS][2];
      MY(whole_span)(G8, rows, outputs, p, x, w, i, group > WHOLE && i + WHOLE < last ? i + WHOLE : last, exact);
#pragma GCC unroll 8
      for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int n = 0; n < outputs; n++)
          sum[m][n] = MY(multiply_add)(MY(as_floats)(exact[m][n]), scale[n][g] - (vec){0}, sum[m][n]);
    }
}

INLINE void MY(scaled)(const int rows, const int outputs, const Product* p, const int16_t* x, const char* w, int64_t o,
                       vec sum[][2]) {
  for (int64_t chunk = 0; chunk < p->groups; chunk += CHUNK) {
    const int64_t count = chunk + CHUNK < p->groups ? CHUNK : p->groups - chunk;
    float scale[2][CHUNK];
    for (int n = 0; n < outputs; n++) MY(floats_of)(p, p->scale, (o + n) * p->groups + chunk, count, scale[n]);
    if (p->group == PACKED) MY(groups_of)(rows, outputs, p, x, w, chunk, count, PACKED, scale, sum);  // one step each
    else MY(groups_of)(rows, outputs, p, x, w, chunk, count, p->group, scale, sum);
  }
}

// The scales of `count` times PACKED inputs of an output; zeros up to the next multiple of LANES.
INLINE void MY(scales_of)(const Product* p, int64_t o, int64_t first, int64_t count, float* to) {
  if (p->group == PACKED) {
    MY(floats_of)(p, p->scale, o * p->groups + first, count, to);
    return;
  }
  const int64_t times = p->group / PACKED, from = first / times, last = (first + count - 1) / times;
  float own[CHUNK];
  MY(floats_of)(p, p->scale, o * p->groups + from, last - from + 1, own);
  for (int64_t k = 0, g = 0, left = times - first % times; k < count; k++, left--) {
    if (left == 0) g++, left = times;
    to[k] = own[g];
  }
  for (int64_t k = count; k % LANES; k++) to[k] = 0;
}

// The same of numbers of 4 bits: a vector of them is LANES / 4 times PACKED, each with its scale.
INLINE void MY(scaled_nibbles)(const int rows, const int outputs, const Product* p, const int16_t* x, const char* w, int64_t o,
                               vec sum[][2]) {
  enum { EACH = LANES / 4 };
  const int64_t stride = p->I / 2, packed = p->I / PACKED, width = WITHOUT_BYTES(p->width);
  for (int64_t chunk = 0; chunk < packed; chunk += CHUNK) {
    const int64_t count = chunk + CHUNK < packed ? CHUNK : packed - chunk;
    float scale[2][CHUNK];
    for (int n = 0; n < outputs; n++) MY(scales_of)(p, o + n, chunk, count, scale[n]);
    for (int64_t k = 0; k < count; k += EACH) {
      const int64_t at = (chunk + k) * (PACKED / 2);
      MY(ahead)(w, outputs * stride, outputs * at);
      MY(ahead)(w, outputs * stride, outputs * at + outputs * (int64_t)sizeof(vec) / 2);
#pragma GCC unroll 8
      for (int n = 0; n < outputs; n++) {
        octets two = {0};
        if (k + EACH <= count) memcpy(&two, w + n * stride + at, sizeof two);
        else memcpy(&two, w + n * stride + at, (count - k) * (PACKED / 2));  // what is behind belongs to others, or to nobody
        const octets low = MY(low)(two), high = MY(high)(two);
        const vec scales = MY(each_four)(scale[n] + k);
#pragma GCC unroll 8
        for (int m = 0; m < rows; m++) {
          const octets* split = (const octets*)(x + m * p->width + width) + 5 * ((chunk + k) / EACH);
          sum[m][n] = MY(multiply_add)(MY(as_floats)(MY(dot_bytes)(low, high, split)), scales, sum[m][n]);
        }
      }
    }
  }
}

// The offsets of groups, each times the sum of the group's inputs.
INLINE void MY(add_offsets)(const int rows, const int outputs, const Product* p, int64_t r, int64_t o, vec sum[][2]) {
  for (int64_t chunk = 0; chunk < p->groups; chunk += CHUNK) {
    const int64_t count = chunk + CHUNK < p->groups ? CHUNK : p->groups - chunk;
    float offset[2][CHUNK];
    for (int n = 0; n < outputs; n++) MY(floats_of)(p, p->offset, (o + n) * p->groups + chunk, count, offset[n]);
    for (int64_t g = 0; g < count; g += LANES)
#pragma GCC unroll 8
      for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int n = 0; n < outputs; n++)
          sum[m][n] = MY(multiply_add)(MY(load)(p->sums + (r + m) * p->span + chunk + g), MY(load)(offset[n] + g), sum[m][n]);
  }
}

INLINE void MY(whole_tile)(const Form form, const int rows, const int outputs, const Product* p, int64_t r, int64_t o) {
  const int16_t* x = (const int16_t*)p->x + r * p->width;
  const char* w = p->w + bytes_of(form, o * p->I);
  vec sum[WHOLE_ROWS][2];
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < outputs; n++) sum[m][n] = (vec){0};
  if (form == G4) MY(scaled_nibbles)(rows, outputs, p, x, w, o, sum);
  else if (form == G8) MY(scaled)(rows, outputs, p, x, w, o, sum);
  else
    for (int64_t i = 0; i < p->I; i += WHOLE) {
      whole exact[WHOLE_ROWS][2];
      MY(whole_span)(form, rows, outputs, p, x, w, i, i + WHOLE < p->I ? i + WHOLE : p->I, exact);
#pragma GCC unroll 8
      for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
        for (int n = 0; n < outputs; n++) sum[m][n] += MY(as_floats)(exact[m][n]);
    }
  if (form != S8 && p->offset.at) MY(add_offsets)(rows, outputs, p, r, o, sum);
#pragma GCC unroll 8
  for (int m = 0; m < rows; m++)
#pragma GCC unroll 8
    for (int n = 0; n < outputs; n++) p->y[(r + m) * p->O + o + n] = MY(total)(sum[m][n]) / MOST * p->most[r + m];
}

// Two outputs at a time with `rows` rows of x, then the last where their number is odd.
#define OUTPUTS(TILE, FORM, ROWS)                                                   \
  do {                                                                              \
    int64_t o = begin;                                                              \
    for (; o + 2 <= end; o += 2) MY(TILE)(FORM, ROWS, 2, p, r, o);                  \
    if (o < end) MY(TILE)(FORM, ROWS, 1, p, r, o);                                  \
  } while (0)

// Rows in blocks of nearly equal size, none larger than `LIMIT`
#define ROWS_OF(TILE, FORM, LIMIT)                                                                                           \
  static __attribute__((target(TARGET), noinline)) void MY(FORM)(const Product* p, int64_t begin, int64_t end) {            \
    const int64_t blocks = (p->R + (LIMIT) - 1) / (LIMIT);                                                                    \
    for (int64_t block = 0, r = 0; block < blocks; block++) {                                                               \
      const int64_t rows = (p->R - r + blocks - block - 1) / (blocks - block);                                              \
      switch (rows) {                                                                                                       \
        case 1: OUTPUTS(TILE, FORM, 1); break;                                                                              \
        case 2: OUTPUTS(TILE, FORM, 2); break;                                                                              \
        case 3: OUTPUTS(TILE, FORM, 3); break;                                                                              \
        default: OUTPUTS(TILE, FORM, LIMIT); break;                                                                          \
      }                                                                                                                     \
      r += rows;                                                                                                            \
    }                                                                                                                       \
  }
#ifndef FLOATS
#define FLOATS PATH
ROWS_OF(float_tile, F32, FLOAT_ROWS)
ROWS_OF(float_tile, BF16, FLOAT_ROWS)
ROWS_OF(float_tile, F16, FLOAT_ROWS)
#endif
ROWS_OF(whole_tile, S8, WHOLE_ROWS)
ROWS_OF(whole_tile, G8, WHOLE_ROWS)
ROWS_OF(whole_tile, G4, WHOLE_ROWS)

static void MY(run)(Form form, const Product* p, int64_t begin, int64_t end) {
  void (*const all[FORMS])(const Product*, int64_t, int64_t) = {JOIN(FLOATS, F32), JOIN(FLOATS, BF16), JOIN(FLOATS, F16),
                                                                     MY(S8), MY(G8), MY(G4)};
  all[form](p, begin, end);
}
#define TEXT_(NAME) #NAME
#define TEXT(NAME) TEXT_(NAME)
static const Path PATH = {TEXT(PATH), MY(STEP), MY(SPLIT), MY(has), MY(lay_out), MY(run)};
#undef PATH
#undef FLOATS
#undef TARGET
#undef LANES
#undef FLOAT_ROWS
#undef WHOLE_ROWS
#undef vec
#undef words
#undef octets
#undef whole
#undef wide
#undef OUTPUTS
#undef ROWS_OF
#undef TEXT
#undef TEXT_
#endif
