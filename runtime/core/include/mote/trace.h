/* The inner phases of the operators' calls, recorded by the core: who worked on what, when, and which stored bytes that read. Both
 * plugin libraries export these functions, each for its own copy of the core: look them up in the library that the runtime loaded.
 *
 * One recording at a time. Every function may be called at any time from any thread, also while operators run: a call that is under
 * way when a recording starts is left out, and of one that is under way when it stops the rest is missing, `layer` among it. */
#ifndef MOTE_TRACE_H
#define MOTE_TRACE_H

#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

#define MOTE_TRACE_NO_EXPERT 0xFFFFu
#define MOTE_TRACE_SHARED_EXPERT 0xFFFEu

/* One span of one phase on one thread, or with the phase `route`, which takes no time, what the router chose for one token. */
typedef struct MoteTraceEvent {
  uint64_t begin_ns, end_ns; /* CLOCK_MONOTONIC */
  uint64_t layer;            /* identity of the layer: address of its packed weights (gate_up_packed, or packed) */
  uint64_t thread;           /* identity of the thread: pthread_self() */
  uint64_t bytes;            /* stored weights and scales that this span reads, each byte once; 0 where it reads none */
  uint32_t call;             /* running number of the operator's call since the start, from 0 */
  uint32_t tokens;           /* rows worked on */
  uint16_t phase;            /* for mote_trace_phase_name */
  uint16_t expert;           /* 0 to E-1, or one of the two above */
  uint32_t token;            /* of `route`: place of the token among the rows of the call; else 0 */
  uint32_t rank;             /* of `route`: 0 for the token's first choice, to top_k - 1; else 0 */
  uint32_t reserved;         /* 0 */
} MoteTraceEvent;

/* Forgets what was recorded before and records up to this many events from now on. 0 on success, 1 if capacity is 0 or there is no
 * memory for it; then nothing is recorded. Memory is touched as events arrive. */
int mote_trace_start(uint64_t capacity);

/* Stops, if a recording runs. The number of events recorded, at most the capacity; *dropped (may be null) is how many more there were. */
uint64_t mote_trace_stop(uint64_t* dropped);

/* Copies `count` events from number `first` on, in the order in which they ended. The number copied: fewer at the end, 0 while a
 * recording runs. */
uint64_t mote_trace_read(MoteTraceEvent* out, uint64_t first, uint64_t count);

/* Null beyond the last phase. docs/kernels.md says what each is. */
const char* mote_trace_phase_name(uint16_t phase);

#ifdef __cplusplus
}
#endif

#endif
