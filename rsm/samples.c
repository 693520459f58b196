/* How long things took lately. */
#include <stdlib.h>
#include <string.h>

#include "rsm/rsm_int.h"

void rsm_samples_add(struct rsm_samples *s, uint64_t us)
{
    s->us[s->count++ % RSM_SAMPLES] =
        us < UINT32_MAX ? (uint32_t)us : UINT32_MAX;
}

static int compare(const void *a, const void *b)
{
    uint32_t x = *(const uint32_t *)a;
    uint32_t y = *(const uint32_t *)b;
    return (x > y) - (x < y);
}

struct rsm_spread rsm_samples_spread(const struct rsm_samples *s)
{
    uint32_t sorted[RSM_SAMPLES];
    uint64_t count = s->count < RSM_SAMPLES ? s->count : RSM_SAMPLES;
    if (count == 0) {
        return (struct rsm_spread){0};
    }
    memcpy(sorted, s->us, count * sizeof *sorted);
    qsort(sorted, count, sizeof *sorted, compare);
    return (struct rsm_spread){.count = s->count,
                               .p50_us = sorted[count / 2],
                               .p99_us = sorted[count * 99 / 100],
                               .max_us = sorted[count - 1]};
}
