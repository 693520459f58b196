/* The files of one identity, as OpenSSL wants them. */
#include "transport/tls_int.h"

#include <errno.h>
#include <openssl/err.h>
#include <openssl/x509.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* AES-128 first: with AES-NI it is the fastest, and its strength is that of
 * the P-256 keys. */
#define CIPHERS                                                                \
    "TLS_AES_128_GCM_SHA256:TLS_AES_256_GCM_SHA384:"                           \
    "TLS_CHACHA20_POLY1305_SHA256"

static const char *openssl_words(void)
{
    const char *words = ERR_reason_error_string(ERR_peek_last_error());
    return words != NULL ? words : "unknown reason";
}

static enum err file_refused(char *problem, size_t problem_size,
                             const char *path, const char *what)
{
    if (access(path, R_OK) != 0) {
        enum err rc = err_from_errno(errno);
        snprintf(problem, problem_size,
                 "cannot read %s: %s; make it with `flotilla certs`", path,
                 strerror(errno));
        return rc;
    }
    snprintf(problem, problem_size,
             "%s: %s: %s; make it anew with `flotilla "
             "certs`",
             path, what, openssl_words());
    return ERR_CORRUPT;
}

static enum err load_files(SSL_CTX *ssl, const struct tls_context *c,
                           char *problem, size_t problem_size)
{
    char *ca = mem_printf("%s/ca.crt", c->dir);
    char *crt = mem_printf("%s/%s.crt", c->dir, c->name);
    char *key = mem_printf("%s/%s.key", c->dir, c->name);
    enum err rc = ERR_OK;
    if (SSL_CTX_load_verify_file(ssl, ca) != 1) {
        rc = file_refused(problem, problem_size, ca, "no usable certificate");
    } else if (SSL_CTX_use_certificate_chain_file(ssl, crt) != 1) {
        rc = file_refused(problem, problem_size, crt, "no usable certificate");
    } else if (SSL_CTX_use_PrivateKey_file(ssl, key, SSL_FILETYPE_PEM) != 1 ||
               SSL_CTX_check_private_key(ssl) != 1) {
        rc = file_refused(problem, problem_size, key,
                          "not the key of the certificate");
    } else {
        struct net_peer self;
        char name[TLS_NAME_SIZE_MAX], why[160];
        if (!tls_subject_read(SSL_CTX_get0_certificate(ssl), &self, name, why,
                              sizeof why)) {
            snprintf(problem, problem_size, "%s: %s", crt, why);
            rc = ERR_CORRUPT;
        }
    }
    mem_free(ca);
    mem_free(crt);
    mem_free(key);
    return rc;
}

static bool set_rules(SSL_CTX *ssl)
{
    SSL_CTX_set_verify(ssl, SSL_VERIFY_PEER | SSL_VERIFY_FAIL_IF_NO_PEER_CERT,
                       tls_verify);
    /* Connections live long: resumption would save nothing, and tickets
     * would outlast a certificate. */
    SSL_CTX_set_session_cache_mode(ssl, SSL_SESS_CACHE_OFF);
    SSL_CTX_set_options(ssl, SSL_OP_NO_TICKET | SSL_OP_NO_COMPRESSION |
                                 SSL_OP_NO_RENEGOTIATION);
    return SSL_CTX_set_min_proto_version(ssl, TLS1_3_VERSION) == 1 &&
           SSL_CTX_set_ciphersuites(ssl, CIPHERS) == 1 &&
           SSL_CTX_set_num_tickets(ssl, 0) == 1;
}

enum err tls_context_reload(struct tls_context *c, char *problem,
                            size_t problem_size)
{
    ERR_clear_error();
    SSL_CTX *ssl = SSL_CTX_new(TLS_method());
    enum err rc = ERR_OK;
    if (ssl == NULL || !set_rules(ssl)) {
        snprintf(problem, problem_size, "OpenSSL refuses TLS 1.3: %s",
                 openssl_words());
        rc = ERR_IO;
    } else {
        rc = load_files(ssl, c, problem, problem_size);
    }
    if (rc != ERR_OK) {
        SSL_CTX_free(ssl);
        return rc;
    }
    SSL_CTX_free(c->ssl);
    c->ssl = ssl;
    return ERR_OK;
}

enum err tls_context_new(const char *dir, const char *name,
                         struct tls_context **out, char *problem,
                         size_t problem_size)
{
    struct tls_context *c = mem_alloc(sizeof *c);
    c->dir = mem_strdup(dir);
    c->name = mem_strdup(name);
    enum err rc = tls_context_reload(c, problem, problem_size);
    if (rc != ERR_OK) {
        tls_context_free(c);
        return rc;
    }
    *out = c;
    return ERR_OK;
}

void tls_context_free(struct tls_context *c)
{
    if (c == NULL) {
        return;
    }
    SSL_CTX_free(c->ssl);
    mem_free(c->dir);
    mem_free(c->name);
    mem_free(c);
}
