/* docs/wire.md, "Frames":
 *
 *   offset  size  field
 *        0     4  magic     "FLT1"; the digit is the version
 *        4     4  size      bytes of the body, at most NET_BODY_SIZE_MAX
 *        8     8  call      echoed in the reply; 0 in a one-way message
 *       16     1  type      enum frame_type
 *       17     1  reserved  zero
 *       18     2  method    0 in a reply
 *       20     2  rc        in a reply, else 0
 *       22     2  reserved  zero
 *
 * Integers are little-endian. There is no checksum: frames exist only inside
 * TLS records, and AES-GCM has authenticated every byte already. */
#include "transport/frame_int.h"

#include "base/codec.h"

#define FRAME_MAGIC 0x31544c46u /* "FLT1" */

_Static_assert(FRAME_HEADER_SIZE == 4 + 4 + 8 + 1 + 1 + 2 + 2 + 2,
               "see docs/wire.md");

static void set_u16(uint8_t *p, uint16_t v)
{
    p[0] = (uint8_t)v;
    p[1] = (uint8_t)(v >> 8);
}

void frame_encode(uint8_t to[FRAME_HEADER_SIZE], const struct frame *f)
{
    set_u32(to, FRAME_MAGIC);
    set_u32(to + 4, f->size);
    set_u64(to + 8, f->call);
    to[16] = (uint8_t)f->type;
    to[17] = 0;
    set_u16(to + 18, f->method);
    set_u16(to + 20, f->rc);
    set_u16(to + 22, 0);
}

static bool fields_agree(const struct frame *f)
{
    switch (f->type) {
    case FRAME_CALL: return f->call != 0 && f->method != 0 && f->rc == 0;
    case FRAME_REPLY: return f->call != 0 && f->method == 0;
    case FRAME_SEND: return f->call == 0 && f->method != 0 && f->rc == 0;
    }
    return false;
}

enum err frame_decode(struct frame *f, const uint8_t from[FRAME_HEADER_SIZE])
{
    struct dec d = dec_of(slice_of(from, FRAME_HEADER_SIZE));

    uint32_t magic = dec_u32(&d);
    f->size = dec_u32(&d);
    f->call = dec_u64(&d);
    f->type = (enum frame_type)dec_u8(&d);
    uint8_t reserved_a = dec_u8(&d);
    f->method = dec_u16(&d);
    f->rc = dec_u16(&d);
    uint16_t reserved_b = dec_u16(&d);

    enum err rc = dec_done(&d);
    if (rc != ERR_OK) {
        return rc;
    }
    if (magic != FRAME_MAGIC) {
        return ERR_VERSION;
    }
    if (f->size > NET_BODY_SIZE_MAX) {
        return ERR_TOOBIG;
    }
    if (reserved_a != 0 || reserved_b != 0 || !fields_agree(f)) {
        return ERR_CORRUPT;
    }
    return ERR_OK;
}
