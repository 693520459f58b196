/* TLS streams on memory. OpenSSL reads and writes through a BIO of our own that
 * takes ciphertext straight from the caller's read buffer and puts it straight
 * into `out`: its own memory BIOs would copy everything once more each way.
 *
 * Invariants:
 *  1. A tls_read() that gives less than it could has taken all that was fed (a
 *     record that is not complete waits inside OpenSSL), so `in` is borrowed
 *     only from tls_feed() to the end of that tls_read().
 *  2. `ready` is set only after the peer's chain, dates, role and, on the
 *     client's side, host were all found good, in tls_verify(). */
#include "transport/tls_int.h"

#include <openssl/err.h>
#include <openssl/x509.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>

#include "base/check.h"

static BIO_METHOD *bio_method;

static int bio_read(BIO *bio, char *to, int size)
{
    struct tls *t = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    size_t taken = size < 0 ? 0 : (size_t)size;
    if (taken > t->in.size) {
        taken = t->in.size;
    }
    if (taken == 0) {
        BIO_set_retry_read(bio);
        return -1;
    }
    memcpy(to, t->in.data, taken);
    t->in.data += taken;
    t->in.size -= taken;
    return (int)taken;
}

static int bio_write(BIO *bio, const char *from, int size)
{
    struct tls *t = BIO_get_data(bio);
    BIO_clear_retry_flags(bio);
    buf_append(&t->out, from, size < 0 ? 0 : (size_t)size);
    return size;
}

static long bio_ctrl(BIO *bio, int command, long number, void *pointer)
{
    (void)bio;
    (void)number;
    (void)pointer;
    return command == BIO_CTRL_FLUSH ? 1 : 0;
}

static void bio_method_make(void)
{
    bio_method = BIO_meth_new(BIO_get_new_index() | BIO_TYPE_SOURCE_SINK,
                              "flotilla buffers");
    CHECK(bio_method != NULL);
    BIO_meth_set_read(bio_method, bio_read);
    BIO_meth_set_write(bio_method, bio_write);
    BIO_meth_set_ctrl(bio_method, bio_ctrl);
}

static BIO *bio_new(struct tls *t)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    pthread_once(&once, bio_method_make);
    BIO *bio = BIO_new(bio_method);
    CHECK(bio != NULL);
    BIO_set_data(bio, t);
    BIO_set_init(bio, 1);
    return bio;
}

/* The certificate must be for the host that was dialled. */
static void expect_host(struct tls *t, const char *host)
{
    X509_VERIFY_PARAM *rules = SSL_get0_param(t->ssl);
    if (X509_VERIFY_PARAM_set1_ip_asc(rules, host) != 1) {
        ERR_clear_error(); /* not an address, then a name */
        CHECK(X509_VERIFY_PARAM_set1_host(rules, host, 0) == 1);
    }
}

struct tls *tls_new(struct tls_context *c, bool is_server, const char *host)
{
    struct tls *t = mem_alloc(sizeof *t);
    t->is_server = is_server;
    t->ssl = SSL_new(c->ssl);
    CHECK(t->ssl != NULL);
    SSL_set_app_data(t->ssl, t);
    BIO *bio = bio_new(t);
    SSL_set_bio(t->ssl, bio, bio); /* takes the one reference for both */
    if (is_server) {
        SSL_set_accept_state(t->ssl);
    } else {
        SSL_set_connect_state(t->ssl);
    }
    if (host != NULL) {
        expect_host(t, host);
    }
    return t;
}

void tls_free(struct tls *t)
{
    if (t == NULL) {
        return;
    }
    SSL_free(t->ssl);
    buf_free(&t->out);
    mem_free(t);
}

int tls_verify(int is_good, X509_STORE_CTX *store)
{
    SSL *ssl =
        X509_STORE_CTX_get_ex_data(store, SSL_get_ex_data_X509_STORE_CTX_idx());
    struct tls *t = SSL_get_app_data(ssl);
    if (!is_good) {
        int error = X509_STORE_CTX_get_error(store);
        snprintf(t->problem, sizeof t->problem, "certificate refused: %s",
                 X509_verify_cert_error_string(error));
        return 0;
    }
    if (X509_STORE_CTX_get_error_depth(store) != 0) {
        return 1; /* the CA's */
    }
    char why[128] = "its role is not server";
    X509 *cert = X509_STORE_CTX_get_current_cert(store);
    if (tls_subject_read(cert, &t->peer, t->name, why, sizeof why) &&
        (t->is_server || t->peer.role == NET_ROLE_SERVER)) {
        return 1;
    }
    t->peer = (struct net_peer){0};
    snprintf(t->problem, sizeof t->problem, "certificate refused: %s", why);
    X509_STORE_CTX_set_error(store, X509_V_ERR_APPLICATION_VERIFICATION);
    return 0;
}

void tls_feed(struct tls *t, struct slice ciphertext)
{
    CHECK(t->in.size == 0);
    t->in = ciphertext;
}

/* What SSL_do_handshake() and SSL_read() gave, as one of our codes. */
static enum err outcome(struct tls *t, int result)
{
    switch (SSL_get_error(t->ssl, result)) {
    case SSL_ERROR_WANT_READ: return ERR_OK;
    case SSL_ERROR_ZERO_RETURN: return ERR_CLOSED;
    default: break;
    }
    if (t->problem[0] == '\0') {
        const char *words = ERR_reason_error_string(ERR_peek_error());
        snprintf(t->problem, sizeof t->problem, "%s",
                 words != NULL ? words : "not TLS");
    }
    t->in = slice_of(NULL, 0);
    return ERR_CORRUPT;
}

/* SSL_get_error() looks at this thread's queue. A look costs less than to clear
 * what is clear. */
static void errors_clear(void)
{
    if (ERR_peek_error() != 0) {
        ERR_clear_error();
    }
}

static enum err handshake(struct tls *t)
{
    errors_clear();
    int result = SSL_do_handshake(t->ssl);
    if (result != 1) {
        return outcome(t, result);
    }
    CHECK(t->peer.role != NET_ROLE_NONE);
    t->ready = true;
    return ERR_OK;
}

enum err tls_read(struct tls *t, uint8_t *to, size_t size, size_t *got)
{
    *got = 0;
    if (!t->ready) {
        enum err rc = handshake(t);
        if (rc != ERR_OK || !t->ready) {
            return rc;
        }
    }
    while (*got < size) {
        size_t more = 0;
        errors_clear();
        int result = SSL_read_ex(t->ssl, to + *got, size - *got, &more);
        if (result != 1) {
            return outcome(t, result);
        }
        *got += more;
        if (t->in.size == 0 && SSL_has_pending(t->ssl) == 0) {
            return ERR_OK; /* all that one more call would say */
        }
    }
    return ERR_OK;
}

enum err tls_write(struct tls *t, struct slice plain)
{
    CHECK(t->ready);
    size_t size = 0;
    errors_clear();
    if (plain.size > 0 &&
        SSL_write_ex(t->ssl, plain.data, plain.size, &size) != 1) {
        return ERR_CORRUPT; /* only after a fatal alert: our BIO never fails */
    }
    CHECK(size == plain.size);
    return ERR_OK;
}

void tls_drain(struct tls *t, struct buf *out)
{
    if (out->size == 0) {
        struct buf empty = *out;
        *out = t->out;
        t->out = empty;
        return;
    }
    buf_append(out, t->out.data, t->out.size);
    buf_clear(&t->out);
}

bool tls_has_output(const struct tls *t)
{
    return t->out.size > 0;
}

bool tls_is_ready(const struct tls *t)
{
    return t->ready;
}

const struct net_peer *tls_peer(const struct tls *t)
{
    return &t->peer;
}

const char *tls_problem(const struct tls *t)
{
    return t->problem;
}
