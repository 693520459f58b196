/* One table per message declares its fields and generates the struct, the
 * encoder and the decoder; docs/messages.md is printed from the same tables.
 *
 *   #define PING_FIELDS(F)            \
 *       F(U64, sent_us)               \
 *       F(BYTES, note)                \
 *       F(LIST, hop, hops, 16)
 *   MSG_STRUCT(ping, PING_FIELDS);    in the header
 *   MSG_CODEC(ping, PING_FIELDS)      in one .c file
 *
 * gives `struct ping`, ping_encode() and ping_decode(). Kinds:
 *   U8 U16 U32 U64 name     an integer, little-endian
 *   BYTES name              u32 size and bytes; decoded as a borrowed slice
 *   SUB type name           another message, in place
 *   LIST type name max      u32 count (over `max` is refused) and that many
 *                           messages; decoded into the arena, with name_count
 * A decoded message borrows from the input and from the arena. */
#ifndef BASE_MSG_H
#define BASE_MSG_H

#include "base/codec.h"

#define MSG_STRUCT(type, FIELDS)                                               \
    struct type {                                                              \
        FIELDS(MSG_DECL_)                                                      \
    };                                                                         \
    void type##_encode(struct buf *b, const struct type *m);                   \
    /* Reads the fields from the cursor; failure is in d->failed. */           \
    void type##_decode_from(struct dec *d, struct arena *a, struct type *m);   \
    /* Reads exactly the whole of `from`. */                                   \
    MUST_USE enum err type##_decode(struct slice from, struct arena *a,        \
                                    struct type *m)

#define MSG_DECL_(kind, ...)     MSG_DECL_##kind(__VA_ARGS__)
#define MSG_DECL_U8(name)        uint8_t name;
#define MSG_DECL_U16(name)       uint16_t name;
#define MSG_DECL_U32(name)       uint32_t name;
#define MSG_DECL_U64(name)       uint64_t name;
#define MSG_DECL_BYTES(name)     struct slice name;
#define MSG_DECL_SUB(type, name) struct type name;
#define MSG_DECL_LIST(type, name, max)                                         \
    struct type *name;                                                         \
    uint32_t name##_count;

#define MSG_ENC_(kind, ...)     MSG_ENC_##kind(__VA_ARGS__)
#define MSG_ENC_U8(name)        enc_u8(b, m->name);
#define MSG_ENC_U16(name)       enc_u16(b, m->name);
#define MSG_ENC_U32(name)       enc_u32(b, m->name);
#define MSG_ENC_U64(name)       enc_u64(b, m->name);
#define MSG_ENC_BYTES(name)     enc_bytes(b, m->name);
#define MSG_ENC_SUB(type, name) type##_encode(b, &m->name);
#define MSG_ENC_LIST(type, name, max)                                          \
    enc_u32(b, m->name##_count);                                               \
    for (uint32_t i = 0; i < m->name##_count; i++) {                           \
        type##_encode(b, &m->name[i]);                                         \
    }

#define MSG_DEC_(kind, ...)     MSG_DEC_##kind(__VA_ARGS__)
#define MSG_DEC_U8(name)        m->name = dec_u8(d);
#define MSG_DEC_U16(name)       m->name = dec_u16(d);
#define MSG_DEC_U32(name)       m->name = dec_u32(d);
#define MSG_DEC_U64(name)       m->name = dec_u64(d);
#define MSG_DEC_BYTES(name)     m->name = dec_bytes(d);
#define MSG_DEC_SUB(type, name) type##_decode_from(d, a, &m->name);
/* A count over what the rest of the input could hold is refused before any
 * memory is taken: every message is at least one byte. */
#define MSG_DEC_LIST(type, name, max)                                          \
    m->name##_count = dec_u32(d);                                              \
    if (m->name##_count > (max) || m->name##_count > dec_left(d)) {            \
        d->failed = true;                                                      \
        m->name##_count = 0;                                                   \
    }                                                                          \
    m->name = arena_array(a, m->name##_count, sizeof *m->name);                \
    for (uint32_t i = 0; i < m->name##_count && !d->failed; i++) {             \
        type##_decode_from(d, a, &m->name[i]);                                 \
    }

#define MSG_CODEC(type, FIELDS)                                                \
    void type##_encode(struct buf *b, const struct type *m)                    \
    {                                                                          \
        (void)b;                                                               \
        (void)m;                                                               \
        FIELDS(MSG_ENC_)                                                       \
    }                                                                          \
    void type##_decode_from(struct dec *d, struct arena *a, struct type *m)    \
    {                                                                          \
        (void)d;                                                               \
        (void)a;                                                               \
        (void)m;                                                               \
        FIELDS(MSG_DEC_)                                                       \
    }                                                                          \
    enum err type##_decode(struct slice from, struct arena *a, struct type *m) \
    {                                                                          \
        struct dec d = dec_of(from);                                           \
        type##_decode_from(&d, a, m);                                          \
        return dec_done(&d);                                                   \
    }

#endif
