/* A seeded generator (splitmix64, Steele et al. 2014): the same seed gives the
 * same numbers on every machine, which is what lets a simulation be replayed.
 */
#ifndef BASE_RNG_H
#define BASE_RNG_H

#include <stdbool.h>
#include <stdint.h>

struct rng {
    uint64_t state;
};

uint64_t rng_next(struct rng *r);
uint64_t rng_below(struct rng *r, uint64_t bound); /* [0, bound); bound > 0 */
uint64_t rng_between(struct rng *r, uint64_t low,
                     uint64_t high); /* inclusive */
bool rng_chance(struct rng *r, uint32_t per_mille);

/* A seed nobody can guess, from the kernel. */
uint64_t rng_entropy(void);

#endif
