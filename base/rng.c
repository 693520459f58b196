#include "base/rng.h"

#include <sys/random.h>

#include "base/check.h"

uint64_t rng_next(struct rng *r)
{
    uint64_t z = r->state += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

uint64_t rng_below(struct rng *r, uint64_t bound)
{
    CHECK(bound > 0);
    /* The bias is below bound / 2^64: nothing here could notice it. */
    return rng_next(r) % bound;
}

uint64_t rng_between(struct rng *r, uint64_t low, uint64_t high)
{
    CHECK(low <= high);
    return low + rng_below(r, high - low + 1);
}

bool rng_chance(struct rng *r, uint32_t per_mille)
{
    return rng_below(r, 1000) < per_mille;
}

uint64_t rng_entropy(void)
{
    uint64_t seed = 0;
    CHECK(getrandom(&seed, sizeof seed, 0) == sizeof seed);
    return seed;
}
