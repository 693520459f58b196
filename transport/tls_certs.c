/* Making certificates: one CA a cluster, ECDSA P-256, one PEM file each for
 * certificate and key. A key file is never readable by others, not even for
 * the moment between its creation and a chmod, and nothing is overwritten. */
#include "transport/tls_int.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <openssl/bn.h>
#include <openssl/ec.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509v3.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum {
    DAYS_MAX = 36500,
    SERIAL_BITS = 127,
    CLOCK_SKEW_S = 300, /* machines' clocks differ; do not begin too late */
};

/* A name becomes a file name and a CN: one plain word. */
static bool name_is_good(const char *name)
{
    size_t size = strlen(name);
    if (size == 0 || size >= TLS_NAME_SIZE_MAX || name[0] == '.') {
        return false;
    }
    for (; *name != '\0'; name++) {
        if (!isalnum((unsigned char)*name) && strchr("._-", *name) == NULL) {
            return false;
        }
    }
    return true;
}

static enum err data_write(const char *path, mode_t mode, BIO *pem)
{
    char *data = NULL;
    long size = BIO_get_mem_data(pem, &data);
    int fd = open(path, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
    if (fd < 0) {
        return err_from_errno(errno);
    }
    errno = EIO; /* of a short write */
    enum err rc = write(fd, data, (size_t)size) != size || fsync(fd) != 0
                      ? err_from_errno(errno)
                      : ERR_OK;
    if (close(fd) != 0 && rc == ERR_OK) {
        rc = err_from_errno(errno);
    }
    return rc;
}

/* Gets its name when it is whole: who is interrupted leaves no half of one. */
static enum err file_write(const char *path, mode_t mode, BIO *pem)
{
    char *whole = mem_printf("%s.new", path);
    (void)unlink(whole); /* of one that was interrupted */
    enum err rc = data_write(whole, mode, pem);
    if (rc == ERR_OK && link(whole, path) != 0) {
        rc = err_from_errno(errno);
    }
    (void)unlink(whole);
    mem_free(whole);
    return rc;
}

static enum err key_write(const char *path, EVP_PKEY *key)
{
    BIO *pem = BIO_new(BIO_s_secmem());
    enum err rc = ERR_IO;
    if (pem != NULL &&
        PEM_write_bio_PrivateKey(pem, key, NULL, NULL, 0, NULL, NULL) == 1) {
        rc = file_write(path, 0600, pem);
    }
    BIO_free(pem);
    return rc;
}

static enum err cert_write(const char *path, X509 *cert)
{
    BIO *pem = BIO_new(BIO_s_mem());
    enum err rc = ERR_IO;
    if (pem != NULL && PEM_write_bio_X509(pem, cert) == 1) {
        rc = file_write(path, 0644, pem);
    }
    BIO_free(pem);
    return rc;
}

/* Both files or neither; the certificate last, so that a key alone is what an
 * interrupted one left. */
static enum err pair_write(const char *dir, const char *name, EVP_PKEY *key,
                           X509 *cert)
{
    char *key_path = mem_printf("%s/%s.key", dir, name);
    char *crt_path = mem_printf("%s/%s.crt", dir, name);
    enum err rc = key_write(key_path, key);
    if (rc == ERR_OK) {
        rc = cert_write(crt_path, cert);
        if (rc != ERR_OK) {
            unlink(key_path);
        }
    }
    mem_free(key_path);
    mem_free(crt_path);
    return rc;
}

static bool extension_add(X509 *cert, X509 *issuer, int nid, const char *value)
{
    X509V3_CTX context;
    X509V3_set_ctx(&context, issuer, cert, NULL, NULL, 0);
    X509V3_set_ctx_nodb(&context);
    X509_EXTENSION *e = X509V3_EXT_conf_nid(NULL, &context, nid, value);
    bool added = e != NULL && X509_add_ext(cert, e, -1) == 1;
    X509_EXTENSION_free(e);
    return added;
}

static bool subject_add(X509 *cert, const char *field, const char *value)
{
    return X509_NAME_add_entry_by_txt(
               X509_get_subject_name(cert), field, MBSTRING_UTF8,
               (const unsigned char *)value, -1, -1, 0) == 1;
}

static bool serial_set(X509 *cert)
{
    BIGNUM *number = BN_new();
    bool set = number != NULL &&
               BN_rand(number, SERIAL_BITS, BN_RAND_TOP_ONE,
                       BN_RAND_BOTTOM_ANY) == 1 &&
               BN_to_ASN1_INTEGER(number, X509_get_serialNumber(cert)) != NULL;
    BN_free(number);
    return set;
}

/* A certificate with all but its subject and extensions; NULL on failure. */
static X509 *cert_begin(EVP_PKEY *key, uint32_t days)
{
    X509 *cert = X509_new();
    if (cert == NULL || X509_set_version(cert, X509_VERSION_3) != 1 ||
        !serial_set(cert) || X509_set_pubkey(cert, key) != 1 ||
        X509_gmtime_adj(X509_getm_notBefore(cert), -CLOCK_SKEW_S) == NULL ||
        X509_time_adj_ex(X509_getm_notAfter(cert), (int)days, 0, NULL) ==
            NULL) {
        X509_free(cert);
        return NULL;
    }
    return cert;
}

static bool ca_fill(X509 *cert, EVP_PKEY *key, const char *cluster)
{
    return subject_add(cert, "O", cluster) &&
           subject_add(cert, "CN", "flotilla CA") &&
           X509_set_issuer_name(cert, X509_get_subject_name(cert)) == 1 &&
           extension_add(cert, cert, NID_basic_constraints,
                         "critical,CA:TRUE,pathlen:0") &&
           extension_add(cert, cert, NID_key_usage,
                         "critical,keyCertSign,cRLSign") &&
           extension_add(cert, cert, NID_subject_key_identifier, "hash") &&
           X509_sign(cert, key, EVP_sha256()) > 0;
}

enum err tls_make_ca(const char *dir, const char *cluster, uint32_t days)
{
    if (!name_is_good(cluster) || days > DAYS_MAX) {
        return ERR_INVALID;
    }
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = key == NULL ? NULL : cert_begin(key, days);
    enum err rc = ERR_IO;
    if (cert != NULL && ca_fill(cert, key, cluster)) {
        rc = pair_write(dir, "ca", key, cert);
    }
    X509_free(cert);
    EVP_PKEY_free(key);
    return rc;
}

static bool is_ip(const char *host)
{
    unsigned char bytes[16];
    return inet_pton(AF_INET, host, bytes) == 1 ||
           inet_pton(AF_INET6, host, bytes) == 1;
}

/* "127.0.0.1, node1" as OpenSSL's "IP:127.0.0.1,DNS:node1"; NULL when a host
 * has a character that could mean something else there. */
static char *san_of(const char *hosts)
{
    char *copy = mem_strdup(hosts);
    char *san = mem_strdup("");
    char *rest = NULL;
    for (char *host = strtok_r(copy, ", ", &rest); host != NULL;
         host = strtok_r(NULL, ", ", &rest)) {
        bool good = is_ip(host) || name_is_good(host);
        char *longer =
            good ? mem_printf("%s%s%s:%s", san, san[0] == '\0' ? "" : ",",
                              is_ip(host) ? "IP" : "DNS", host)
                 : NULL;
        mem_free(san);
        san = longer;
        if (!good) {
            break;
        }
    }
    mem_free(copy);
    return san;
}

static EVP_PKEY *key_read(const char *path)
{
    BIO *file = BIO_new_file(path, "r");
    EVP_PKEY *key =
        file == NULL ? NULL : PEM_read_bio_PrivateKey(file, NULL, NULL, NULL);
    BIO_free(file);
    return key;
}

static X509 *cert_read(const char *path)
{
    BIO *file = BIO_new_file(path, "r");
    X509 *cert =
        file == NULL ? NULL : PEM_read_bio_X509(file, NULL, NULL, NULL);
    BIO_free(file);
    return cert;
}

static bool leaf_fill(X509 *cert, X509 *ca, EVP_PKEY *ca_key,
                      const struct tls_identity *who, const char *san)
{
    return subject_add(cert, "OU", who->unit) &&
           subject_add(cert, "CN", who->name) &&
           X509_set_issuer_name(cert, X509_get_subject_name(ca)) == 1 &&
           extension_add(cert, ca, NID_basic_constraints,
                         "critical,CA:FALSE") &&
           extension_add(cert, ca, NID_key_usage,
                         "critical,digitalSignature") &&
           extension_add(cert, ca, NID_ext_key_usage,
                         "serverAuth,clientAuth") &&
           extension_add(cert, ca, NID_authority_key_identifier, "keyid") &&
           (san[0] == '\0' ||
            extension_add(cert, ca, NID_subject_alt_name, san)) &&
           X509_sign(cert, ca_key, EVP_sha256()) > 0;
}

static enum err leaf_make(const char *dir, const struct tls_identity *who,
                          const char *san, X509 *ca, EVP_PKEY *ca_key)
{
    EVP_PKEY *key = EVP_EC_gen("P-256");
    X509 *cert = key == NULL ? NULL : cert_begin(key, who->days);
    enum err rc = ERR_IO;
    if (cert != NULL && leaf_fill(cert, ca, ca_key, who, san)) {
        rc = pair_write(dir, who->name, key, cert);
    }
    X509_free(cert);
    EVP_PKEY_free(key);
    return rc;
}

enum err tls_make_certificate(const char *dir, const struct tls_identity *who)
{
    enum net_role role;
    uint32_t group;
    if (!name_is_good(who->name) || strcmp(who->name, "ca") == 0 ||
        !tls_role_parse(who->unit, &role, &group) || who->days > DAYS_MAX) {
        return ERR_INVALID;
    }
    char *san = san_of(who->hosts != NULL ? who->hosts : "");
    if (san == NULL) {
        return ERR_INVALID;
    }
    char *crt_path = mem_printf("%s/ca.crt", dir);
    char *key_path = mem_printf("%s/ca.key", dir);
    X509 *ca = cert_read(crt_path);
    EVP_PKEY *ca_key = key_read(key_path);
    enum err rc = ERR_NOTFOUND;
    if (ca != NULL && ca_key != NULL) {
        rc = X509_check_private_key(ca, ca_key) == 1
                 ? leaf_make(dir, who, san, ca, ca_key)
                 : ERR_CORRUPT;
    }
    EVP_PKEY_free(ca_key);
    X509_free(ca);
    mem_free(crt_path);
    mem_free(key_path);
    mem_free(san);
    return rc;
}

enum err tls_certificate_end(const char *dir, const char *name, uint64_t *end_s)
{
    char *path = mem_printf("%s/%s.crt", dir, name);
    X509 *cert = cert_read(path);
    enum err rc = access(path, F_OK) == 0 ? ERR_CORRUPT : ERR_NOTFOUND;
    mem_free(path);
    struct tm tm;
    if (cert != NULL && ASN1_TIME_to_tm(X509_get0_notAfter(cert), &tm) == 1) {
        *end_s = (uint64_t)timegm(&tm);
        rc = ERR_OK;
    }
    X509_free(cert);
    return rc;
}
