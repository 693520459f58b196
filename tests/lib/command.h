/* A request as the log's command, from bytes that are elsewhere. */
#ifndef TESTS_LIB_COMMAND_H
#define TESTS_LIB_COMMAND_H

#include <string.h>

#include "shardkv/command_int.h"

static inline struct bytes *command_of(uint64_t stamp_us, struct slice request)
{
    struct bytes *b = bytes_new(SKV_COMMAND_ROOM + request.size);
    if (request.size > 0) {
        memcpy(b->data + SKV_COMMAND_ROOM, request.data, request.size);
    }
    return skv_command_request(stamp_us, b);
}

#endif
