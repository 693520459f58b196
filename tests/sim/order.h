/* The order in which operations took effect, as the stores of all replicas show
 * it: the first one that comes to a write came first to all before it, because
 * the replicas of a group write in one order. It is for linear.h, which tries
 * it before all others; where it is wrong, nothing but time is lost. */
#ifndef TESTS_SIM_ORDER_H
#define TESTS_SIM_ORDER_H

#include "base/mem.h"

/* The number in "[17]"; 0: it is none, or several. */
uint64_t order_token(struct slice data);

struct order;

/* `deleted` hears of a delete that took effect: of which operation nothing in a
 * store says. */
struct order *order_new(void (*deleted)(void *arg, struct slice key,
                                        uint64_t rank),
                        void *arg);
void order_free(struct order *o);

/* What a store puts, or removes: see skv_mem_image. */
void order_wrote(struct order *o, struct slice key, const struct slice *data);

/* From 1 on; 0: nobody has seen it. */
uint64_t order_rank(const struct order *o, uint64_t token);

#endif
