/* The project's one table of errors: a code, the errno a FUSE caller sees, and
 * the words for people. Functions that can fail return `enum err`, give their
 * result through the last parameter, and leave it alone on failure. */
#ifndef BASE_ERR_H
#define BASE_ERR_H

#include <stdint.h>

#define MUST_USE __attribute__((warn_unused_result))

/* The number is on the wire (docs/wire.md): never renumber, only append. */
// clang-format off
#define ERR_TABLE(X)                                                          \
    X(ERR_OK,          0, 0,            "success")                            \
    X(ERR_NOMEM,       1, ENOMEM,       "out of memory")                      \
    X(ERR_IO,          2, EIO,          "disk or network input/output failed") \
    X(ERR_CORRUPT,     3, EIO,          "stored or received bytes fail their check") \
    X(ERR_TOOBIG,      4, EFBIG,        "value is over its documented limit") \
    X(ERR_NOTFOUND,    5, ENOENT,       "no such key")                        \
    X(ERR_CONFLICT,    6, EAGAIN,       "a compare item failed: the key changed since it was read") \
    X(ERR_NOTLEADER,   7, EAGAIN,       "this replica is not the leader")     \
    X(ERR_WRONGGROUP,  8, EAGAIN,       "this group does not serve the shard now") \
    X(ERR_TIMEDOUT,    9, ETIMEDOUT,    "no answer before the deadline")      \
    X(ERR_INVALID,    10, EINVAL,       "the request makes no sense")         \
    X(ERR_BUSY,       11, EAGAIN,       "a bound is reached: try again later") \
    X(ERR_CLOSED,     12, EIO,          "the connection or the replica is closing") \
    X(ERR_DENIED,     13, EACCES,       "the certificate's role does not allow this call") \
    X(ERR_EXISTS,     14, EEXIST,       "it exists already")                  \
    X(ERR_EXPIRED,    15, EIO,          "the clerk's session expired: the request may or may not have been executed before") \
    X(ERR_NOSPACE,    16, ENOSPC,       "no space left on the disk")          \
    X(ERR_INTERRUPTED,17, EINTR,        "the caller gave up")                 \
    X(ERR_LOCKED,     18, EAGAIN,       "a prepared transaction holds the key") \
    X(ERR_ABORTED,    19, EAGAIN,       "the transaction was aborted")        \
    X(ERR_VERSION,    20, EPROTO,       "the peer speaks another version of the protocol or the format") \
    X(ERR_ELSEWHERE,  21, EAGAIN,       "the key an indirect item names is in another shard") \
    /* What POSIX asks of a filesystem; fs/ returns these. */                 \
    X(ERR_PERM,       32, EPERM,        "operation not permitted")            \
    X(ERR_ACCESS,     33, EACCES,       "permission denied")                  \
    X(ERR_NOTDIR,     34, ENOTDIR,      "not a directory")                    \
    X(ERR_ISDIR,      35, EISDIR,       "is a directory")                     \
    X(ERR_NOTEMPTY,   36, ENOTEMPTY,    "directory not empty")                \
    X(ERR_NAMETOOLONG,37, ENAMETOOLONG, "file name too long")                 \
    X(ERR_MLINK,      38, EMLINK,       "too many links")                     \
    X(ERR_NODATA,     39, ENODATA,      "no such extended attribute")         \
    X(ERR_RANGE,      40, ERANGE,       "buffer too small")                   \
    X(ERR_NOTSUP,     41, EOPNOTSUPP,   "operation not supported")            \
    X(ERR_STALE,      42, ESTALE,       "the file was removed")               \
    X(ERR_LOOP,       43, ELOOP,        "too many levels of symbolic links")
// clang-format on

enum err {
#define X(code, number, posix, words) code = number,
    ERR_TABLE(X)
#undef X
};

/* The words of the table; never NULL, also for a number from the wire. */
const char *err_text(enum err rc);

/* "ERR_NOTLEADER" and so on; never NULL. */
const char *err_name(enum err rc);

/* The errno for a FUSE caller; EIO for a number that is not in the table. */
int err_posix(enum err rc);

/* The code for an errno of a system call; ERR_IO when there is no closer. */
enum err err_from_errno(int number);

/* A number from the wire: itself if in the table, else ERR_CORRUPT. */
enum err err_from_wire(uint32_t number);

#endif
