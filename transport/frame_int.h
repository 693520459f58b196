/* A frame's header: pure bytes, no socket (docs/wire.md, "Frames"). */
#ifndef TRANSPORT_FRAME_INT_H
#define TRANSPORT_FRAME_INT_H

#include "transport/net.h"

enum { FRAME_HEADER_SIZE = 24 };

enum frame_type {
    FRAME_CALL = 1,  /* wants a FRAME_REPLY with the same number */
    FRAME_REPLY = 2, /* on the connection its call came by */
    FRAME_SEND = 3,  /* one way */
};

struct frame {
    uint32_t size; /* of the body */
    uint64_t call; /* 0 when one way */
    enum frame_type type;
    net_method method; /* 0 in a reply */
    uint16_t rc;       /* of a reply: a number of ERR_TABLE; else 0 */
};

void frame_encode(uint8_t to[FRAME_HEADER_SIZE], const struct frame *f);

/* ERR_VERSION: another magic. ERR_TOOBIG: the body is over NET_BODY_SIZE_MAX.
 * ERR_CORRUPT: fields that contradict each other. */
MUST_USE enum err frame_decode(struct frame *f,
                               const uint8_t from[FRAME_HEADER_SIZE]);

#endif
