/* The simulator's heap, in place of the C library's: a seventh of its time went
 * there. Blocks of a size are kept in a list, the one freed last is given next,
 * and nothing is ever joined or given back: a run needs what the last one did.
 * One thread. Where a sanitizer watches the heap, its own stays.
 *
 *  1. A block has its class and its state in front of it, so a block that is
 *     freed twice, and one that somebody wrote in front of, is seen.
 *  2. What is freed is overwritten at its beginning, where structs have what
 *     they point to, so who uses it after that is seen, too. */
#include <errno.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__)

#include "base/check.h"

enum {
    STEP = 16, /* and what blocks are aligned to */
    SMALL_MAX = 1024,
    SMALL_CLASSES = SMALL_MAX / STEP,
    LARGE_BITS = 10, /* doublings above SMALL_MAX, of four classes each */
    CLASSES = SMALL_CLASSES + 4 * LARGE_BITS,
    SLAB_SIZE = 4 << 20,
    HUGE_PAGE_SIZE = 2 << 20,
};

enum state { STATE_FREE = 0x66726565, STATE_USED = 0x75736564 };

struct block {
    uint32_t class; /* CLASSES: too large for any, the C library's */
    uint32_t state;
    uint64_t size;
};

struct free_block {
    struct block block;
    struct free_block *next;
    uint64_t poison;
};

static struct free_block *lists[CLASSES];
static uint8_t *slab, *slab_end;

void *__libc_malloc(size_t size);
void *__libc_memalign(size_t alignment, size_t size);
void __libc_free(void *p);

/* The class of blocks that hold `size`, and how much those hold. */
static uint32_t class_of(size_t size, size_t *room)
{
    if (size <= SMALL_MAX) {
        uint32_t class = size == 0 ? 0 : (uint32_t)((size - 1) / STEP);
        *room = (class + 1) * (size_t)STEP;
        return class;
    }
    uint32_t bits = 63 - (uint32_t)__builtin_clzll(size - 1); /* 10 and more */
    size_t step = (size_t)1 << (bits - 2);
    uint32_t quarter = (uint32_t)((size - 1) >> (bits - 2)) & 3;
    uint32_t class = SMALL_CLASSES + 4 * (bits - 10) + quarter;
    *room = ((size_t)1 << bits) + (quarter + 1) * step;
    return class < CLASSES ? class : CLASSES;
}

static struct block *block_new(uint32_t class, size_t room)
{
    size_t size = sizeof(struct block) + room;
    size = size < sizeof(struct free_block) ? sizeof(struct free_block) : size;
    if (class == CLASSES) {
        return __libc_malloc(size);
    }
    if ((size_t)(slab_end - slab) < size) {
        slab = __libc_memalign(HUGE_PAGE_SIZE, SLAB_SIZE);
        slab_end = slab + (slab == NULL ? 0 : SLAB_SIZE);
        if (slab == NULL) {
            return NULL;
        }
        /* Where it is refused, the same works, a tenth slower. */
        (void)madvise(slab, SLAB_SIZE, MADV_HUGEPAGE);
    }
    struct block *b = (struct block *)(void *)slab;
    slab += size;
    return b;
}

/* Not malloc itself: compilers know that one, and make calloc of it. */
static void *take(size_t size)
{
    if (size > PTRDIFF_MAX / 2) {
        errno = ENOMEM;
        return NULL;
    }
    size_t room;
    uint32_t class = class_of(size, &room);
    struct block *b;
    if (class < CLASSES && lists[class] != NULL) {
        struct free_block *f = lists[class];
        CHECK(f->block.state == STATE_FREE && f->poison == STATE_FREE);
        lists[class] = f->next;
        b = &f->block;
    } else {
        b = block_new(class, room);
        if (b == NULL) {
            errno = ENOMEM;
            return NULL;
        }
    }
    *b = (struct block){class, STATE_USED, room};
    return b + 1;
}

void *malloc(size_t size)
{
    return take(size);
}

void free(void *p)
{
    if (p == NULL) {
        return;
    }
    struct free_block *f = (struct free_block *)(void *)((struct block *)p - 1);
    CHECK(f->block.state == STATE_USED);
    f->block.state = STATE_FREE;
    if (f->block.class == CLASSES) {
        __libc_free(f);
        return;
    }
    f->poison = STATE_FREE;
    f->next = lists[f->block.class];
    lists[f->block.class] = f;
}

void *calloc(size_t count, size_t size)
{
    size_t all;
    if (__builtin_mul_overflow(count, size, &all)) {
        errno = ENOMEM;
        return NULL;
    }
    void *p = take(all);
    return p == NULL ? NULL : memset(p, 0, all);
}

void *realloc(void *p, size_t size)
{
    size_t had = p == NULL ? 0 : ((struct block *)p - 1)->size;
    if (p != NULL && size <= had && size >= had / 2) {
        return p;
    }
    void *q = take(size);
    if (q != NULL && p != NULL) {
        memcpy(q, p, had < size ? had : size);
        free(p);
    }
    return q;
}

#endif
