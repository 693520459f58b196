/* Memory. Every size that comes from outside is bounded before it gets here,
 * so running out means the machine is out of memory: the process says so and
 * ends, as after any crash it is restarted and nothing acknowledged is lost.
 * That is one well-tested path instead of thousands that nobody takes. */
#ifndef BASE_MEM_H
#define BASE_MEM_H

#include <stddef.h>
#include <stdint.h>

/* Zeroed memory; never NULL. Free with mem_free(). */
void *mem_alloc(size_t size) __attribute__((malloc, returns_nonnull));

/* An array of `count` zeroed items; the product is checked. */
void *mem_array(size_t count, size_t item_size)
    __attribute__((malloc, returns_nonnull));

/* As realloc(); what is new is not zeroed. Never NULL. */
void *mem_resize(void *p, size_t size) __attribute__((returns_nonnull));

char *mem_strdup(const char *text) __attribute__((malloc, returns_nonnull));

/* printf into new memory; free with mem_free(). */
char *mem_printf(const char *format, ...)
    __attribute__((malloc, returns_nonnull, format(printf, 1, 2)));

void mem_free(void *p);
/* What malloc keeps of what was freed goes back to the kernel, after work that
 * took much more than what follows it. Milliseconds. */
void mem_trim(void);

/* Bytes somebody else owns: borrowed, never freed through this. */
struct slice {
    const uint8_t *data;
    size_t size;
};

struct slice slice_of(const void *data, size_t size);
struct slice slice_text(const char *text);
int slice_compare(struct slice a, struct slice b); /* memcmp, then length */

/* A block of bytes with a count of owners. The count is atomic: a log entry is
 * shared by the core, the log writer, the applier and the links to peers. The
 * bytes do not change once more than one owner holds it. */
struct bytes {
    uint32_t refs;
    uint32_t size;
    uint8_t *data;       /* behind this struct, or in `whole` */
    struct bytes *whole; /* what this is a part of; NULL: itself */
};

struct bytes *bytes_new(size_t size);        /* one reference */
struct bytes *bytes_copy(struct slice from); /* one reference */
/* A part of `whole`, without a copy; one reference. It keeps all of `whole` in
 * memory. */
struct bytes *bytes_part(struct bytes *whole, struct slice part);
struct bytes *bytes_ref(struct bytes *b);        /* NULL passes through */
void bytes_unref(struct bytes *b);               /* NULL passes through */
struct slice bytes_slice(const struct bytes *b); /* empty for NULL */

/* Many small blocks that die together; zeroed, but for copies. */
struct arena {
    struct arena_block *blocks;
};

void *arena_alloc(struct arena *a, size_t size)
    __attribute__((returns_nonnull));
void *arena_array(struct arena *a, size_t count, size_t item_size)
    __attribute__((returns_nonnull));
struct slice arena_copy(struct arena *a, struct slice from);
void arena_free(struct arena *a); /* frees all blocks; usable again */

/* A growing buffer. Zero-initialise it; buf_free() when done. */
struct buf {
    uint8_t *data;
    size_t size;
    size_t capacity;
};

uint8_t *buf_extend(struct buf *b, size_t size); /* `size` more bytes, unset */
void buf_append(struct buf *b, const void *data, size_t size);
void buf_clear(struct buf *b); /* keeps the memory */
void buf_free(struct buf *b);
struct slice buf_slice(const struct buf *b);

#endif
