// Work that is cut into pieces for XLA's own threads.
//
// Each thread takes the next piece until none is left, and who called works too: so it waits only for pieces that somebody has
// begun, and a pool whose threads are all busy, or wait for us, stops nobody. Which thread has which piece changes no number.
#pragma once
#include <sched.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#ifdef __x86_64__
#include <immintrin.h>
#endif

#include "xla/ffi/api/c_api.h"

// Sums are the same on every thread only where all of them round, and keep what is smallest, alike.
#if defined(__x86_64__)
static inline uint64_t usual_rounding(void) {
  const uint64_t before = _mm_getcsr();
  _mm_setcsr(0x1f80);
  return before;
}
static inline void rounding_as(uint64_t before) { _mm_setcsr((uint32_t)before); }
#elif defined(__aarch64__)
static inline void rounding_as(uint64_t before) { __asm__ volatile("msr fpcr, %0" ::"r"(before)); }
static inline uint64_t usual_rounding(void) {
  uint64_t before;
  __asm__ volatile("mrs %0, fpcr" : "=r"(before));
  rounding_as(0);
  return before;
}
#else
static inline uint64_t usual_rounding(void) { return 0; }
static inline void rounding_as(uint64_t before) { (void)before; }
#endif

typedef void Piece(const void* job, int64_t piece);

typedef struct {
  Piece* piece;
  const void* job;  // on the stack of who called, which waits until no piece is under way
  int64_t pieces;
  atomic_llong next, done;
  atomic_int holders;  // the last one frees this: a thread may come to it when all is done
} Work;

static void work(Work* all) {
  const uint64_t before = usual_rounding();
  for (int64_t at; (at = atomic_fetch_add(&all->next, 1)) < all->pieces; atomic_fetch_add(&all->done, 1)) all->piece(all->job, at);
  rounding_as(before);
}

static void leave(Work* all) {
  if (atomic_fetch_sub(&all->holders, 1) == 1) free(all);
}

static void help(void* all) {
  work(all);
  leave(all);
}

static void relax(int64_t turn) {
#ifdef __x86_64__
  if (turn < 4096) {
    _mm_pause();
    return;
  }
#endif
  sched_yield();  // somebody else may need this processor to end the last piece
}

// Did XLA refuse what it was asked for? Its words are ours to free.
static int refused(XLA_FFI_CallFrame* call, XLA_FFI_Error* error) {
  XLA_FFI_Error_Destroy_Args given = {.struct_size = sizeof given, .error = error};
  if (error) call->api->XLA_FFI_Error_Destroy(&given);
  return error != NULL;
}

static int64_t threads_of(XLA_FFI_CallFrame* call) {
  int64_t threads = 1;
  XLA_FFI_ThreadPool_NumThreads_Args asked = {.struct_size = sizeof asked, .ctx = call->ctx, .num_threads = &threads};
  return refused(call, call->api->XLA_FFI_ThreadPool_NumThreads(&asked)) || threads < 1 ? 1 : threads;
}

// Call piece(job, n) for every n below pieces. bytes is how much is read: for little, waking a thread costs more than it brings.
static void in_pieces(XLA_FFI_CallFrame* call, Piece* piece, const void* job, int64_t pieces, int64_t bytes) {
  enum { LITTLE = 1 << 17 };
  int64_t threads = bytes < LITTLE ? 1 : threads_of(call);
  if (threads > pieces) threads = pieces;
  Work* all = threads > 1 ? malloc(sizeof *all) : NULL;
  if (!all) {
    work(&(Work){.piece = piece, .job = job, .pieces = pieces});
    return;
  }
  *all = (Work){.piece = piece, .job = job, .pieces = pieces, .holders = 1};
  for (int64_t thread = 1; thread < threads; thread++) {
    atomic_fetch_add(&all->holders, 1);
    XLA_FFI_ThreadPool_Schedule_Args given = {.struct_size = sizeof given, .ctx = call->ctx, .task = help, .data = all};
    if (refused(call, call->api->XLA_FFI_ThreadPool_Schedule(&given))) leave(all);
  }
  work(all);
  for (int64_t turn = 0; atomic_load(&all->done) < pieces; turn++) relax(turn);
  leave(all);
}

// XLA asks each function once which version of this interface it was made for, in words that changed their names since.
typedef struct {
  size_t struct_size;
  int32_t type;
  void* next;
  XLA_FFI_Metadata* metadata;
} Asked;

static int only_asked(XLA_FFI_CallFrame* call) {
  const Asked* asked = (const void*)call->extension_start;
  if (!asked || asked->type != XLA_FFI_Extension_Metadata) return 0;
  asked->metadata->api_version.major_version = XLA_FFI_API_MAJOR;
  asked->metadata->api_version.minor_version = XLA_FFI_API_MINOR;
  return 1;
}
