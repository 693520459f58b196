/* The env over libuv: one loop, its timers, worker threads, and posts from
 * other threads (one eventfd wake-up for many posts). The only place where
 * threads of a server are made. */
#ifndef TRANSPORT_LOOP_H
#define TRANSPORT_LOOP_H

#include "base/env.h"
#include "base/err.h"

struct net_loop;

/* Free with net_loop_free(), after everything on it was closed. */
MUST_USE enum err net_loop_new(struct net_loop **out);
void net_loop_free(struct net_loop *loop);
struct env *net_loop_env(struct net_loop *loop);

/* Runs until net_loop_stop(). The thread that calls it is the loop's. */
void net_loop_run(struct net_loop *loop);
/* From any thread. */
void net_loop_stop(struct net_loop *loop);

/* Calls `fn` on the loop when the process gets `signal_number`. At most 8. */
MUST_USE enum err net_loop_signal(struct net_loop *loop, int signal_number,
                                  void (*fn)(void *arg, int signal_number),
                                  void *arg);

#endif
