#include "base/err.h"

#include <errno.h>

const char *err_text(enum err rc)
{
    switch (rc) {
#define X(code, number, posix, words)                                          \
    case code: return words;
        ERR_TABLE(X)
#undef X
    }
    return "unknown error";
}

const char *err_name(enum err rc)
{
    switch (rc) {
#define X(code, number, posix, words)                                          \
    case code: return #code;
        ERR_TABLE(X)
#undef X
    }
    return "ERR_?";
}

int err_posix(enum err rc)
{
    switch (rc) {
#define X(code, number, posix, words)                                          \
    case code: return posix;
        ERR_TABLE(X)
#undef X
    }
    return EIO;
}

enum err err_from_errno(int number)
{
    switch (number) {
    case 0: return ERR_OK;
    case ENOMEM: return ERR_NOMEM;
    case ENOENT: return ERR_NOTFOUND;
    case EEXIST: return ERR_EXISTS;
    case EFBIG: return ERR_TOOBIG;
    case EINTR: return ERR_INTERRUPTED;
    case ETIMEDOUT: return ERR_TIMEDOUT;
    case ENOSPC: return ERR_NOSPACE;
    case EDQUOT: return ERR_NOSPACE;
    case EINVAL: return ERR_INVALID;
    default: return ERR_IO;
    }
}

enum err err_from_wire(uint32_t number)
{
    switch (number) {
#define X(code, value, posix, words)                                           \
    case value: return code;
        ERR_TABLE(X)
#undef X
    default: return ERR_CORRUPT;
    }
}
