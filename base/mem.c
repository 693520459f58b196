#include "base/mem.h"

#include <malloc.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "base/check.h"

enum {
    /* Most arenas hold one small message: the first block is one that malloc
     * hands out of its cache. */
    ARENA_BLOCK_FIRST = 960,
    ARENA_BLOCK_SIZE = 4096,
    BUF_CAPACITY_MIN = 256,
    SMALL_SIZE_MAX = 1024,
};

static void *must(void *p, size_t size)
{
    if (p == NULL) {
        fprintf(stderr, "out of memory: %zu more bytes were refused\n", size);
        abort();
    }
    return p;
}

/* glibc's calloc does not look into the thread's cache, malloc does: for what
 * is small, that and a memset are several times cheaper. */
void *mem_alloc(size_t size)
{
    if (size > SMALL_SIZE_MAX) {
        return must(calloc(1, size), size);
    }
    return memset(must(malloc(size > 0 ? size : 1), size), 0, size);
}

void *mem_array(size_t count, size_t item_size)
{
    return must(calloc(count > 0 ? count : 1, item_size), count);
}

void *mem_resize(void *p, size_t size)
{
    return must(realloc(p, size > 0 ? size : 1), size);
}

char *mem_strdup(const char *text)
{
    size_t size = strlen(text) + 1;
    char *copy = mem_alloc(size);
    memcpy(copy, text, size);
    return copy;
}

char *mem_printf(const char *format, ...)
{
    char *text = NULL;
    va_list args;
    va_start(args, format);
    int size = vasprintf(&text, format, args);
    va_end(args);
    return must(size < 0 ? NULL : text, 0);
}

void mem_free(void *p)
{
    free(p);
}

void mem_trim(void)
{
    (void)malloc_trim(0);
}

struct slice slice_of(const void *data, size_t size)
{
    return (struct slice){.data = data, .size = size};
}

struct slice slice_text(const char *text)
{
    return slice_of(text, strlen(text));
}

int slice_compare(struct slice a, struct slice b)
{
    size_t common = a.size < b.size ? a.size : b.size;
    int order = common == 0 ? 0 : memcmp(a.data, b.data, common);
    if (order != 0) {
        return order;
    }
    return (a.size > b.size) - (a.size < b.size);
}

struct bytes *bytes_new(size_t size)
{
    CHECK(size <= UINT32_MAX);
    /* Not zeroed: the caller fills it, and a mebibyte is common. */
    struct bytes *b = mem_resize(NULL, sizeof *b + size);
    b->refs = 1;
    b->size = (uint32_t)size;
    b->data = (uint8_t *)(b + 1);
    b->whole = NULL;
    return b;
}

struct bytes *bytes_part(struct bytes *whole, struct slice part)
{
    CHECK(part.data >= whole->data && part.size <= whole->size);
    CHECK((size_t)(part.data - whole->data) <= whole->size - part.size);
    struct bytes *b = mem_resize(NULL, sizeof *b);
    b->refs = 1;
    b->size = (uint32_t)part.size;
    b->data = whole->data + (part.data - whole->data);
    b->whole = bytes_ref(whole->whole != NULL ? whole->whole : whole);
    return b;
}

struct bytes *bytes_copy(struct slice from)
{
    struct bytes *b = bytes_new(from.size);
    if (from.size > 0) {
        memcpy(b->data, from.data, from.size);
    }
    return b;
}

struct bytes *bytes_ref(struct bytes *b)
{
    if (b != NULL) {
        __atomic_add_fetch(&b->refs, 1, __ATOMIC_RELAXED);
    }
    return b;
}

void bytes_unref(struct bytes *b)
{
    while (b != NULL &&
           __atomic_sub_fetch(&b->refs, 1, __ATOMIC_ACQ_REL) == 0) {
        struct bytes *whole = b->whole;
        mem_free(b);
        b = whole;
    }
}

struct slice bytes_slice(const struct bytes *b)
{
    return b == NULL ? slice_of(NULL, 0) : slice_of(b->data, b->size);
}

struct arena_block {
    struct arena_block *next;
    size_t used;
    size_t size;
    _Alignas(16) uint8_t data[];
};

static struct arena_block *arena_grow(struct arena *a, size_t size)
{
    size_t least = a->blocks == NULL ? ARENA_BLOCK_FIRST : ARENA_BLOCK_SIZE;
    size_t room = size > least ? size : least;
    CHECK(room < SIZE_MAX - sizeof(struct arena_block));
    struct arena_block *block = mem_resize(NULL, sizeof *block + room);
    block->used = 0;
    block->size = room;
    block->next = a->blocks;
    a->blocks = block;
    return block;
}

/* Unset. */
static void *arena_take(struct arena *a, size_t size)
{
    CHECK(size <= SIZE_MAX - 15);
    size = (size + 15) & ~(size_t)15;
    struct arena_block *block = a->blocks;
    if (block == NULL || block->size - block->used < size) {
        block = arena_grow(a, size);
    }
    void *p = block->data + block->used;
    block->used += size;
    return p;
}

/* Zeroes what it gives, and not the rest of a block: for a message of a few
 * bytes that would cost more than all else about it. */
void *arena_alloc(struct arena *a, size_t size)
{
    return memset(arena_take(a, size), 0, size);
}

void *arena_array(struct arena *a, size_t count, size_t item_size)
{
    size_t size = 0;
    CHECK(!__builtin_mul_overflow(count, item_size, &size));
    return arena_alloc(a, size);
}

struct slice arena_copy(struct arena *a, struct slice from)
{
    void *copy = arena_take(a, from.size);
    if (from.size > 0) {
        memcpy(copy, from.data, from.size);
    }
    return slice_of(copy, from.size);
}

void arena_free(struct arena *a)
{
    while (a->blocks != NULL) {
        struct arena_block *block = a->blocks;
        a->blocks = block->next;
        mem_free(block);
    }
}

/* Apart, so that what encoders call for each field is a few instructions. */
static __attribute__((noinline)) void buf_grow(struct buf *b, size_t needed)
{
    size_t capacity = b->capacity > 0 ? b->capacity : (size_t)BUF_CAPACITY_MIN;
    while (capacity < needed) {
        capacity *= 2;
    }
    b->data = mem_resize(b->data, capacity);
    b->capacity = capacity;
}

uint8_t *buf_extend(struct buf *b, size_t size)
{
    size_t needed = b->size + size;
    CHECK(needed >= size);
    if (needed > b->capacity || b->data == NULL) {
        buf_grow(b, needed);
    }
    uint8_t *at = b->data + b->size;
    b->size = needed;
    return at;
}

void buf_append(struct buf *b, const void *data, size_t size)
{
    if (size > 0) {
        memcpy(buf_extend(b, size), data, size);
    }
}

void buf_clear(struct buf *b)
{
    b->size = 0;
}

void buf_free(struct buf *b)
{
    mem_free(b->data);
    *b = (struct buf){0};
}

struct slice buf_slice(const struct buf *b)
{
    return slice_of(b->data, b->size);
}
