// Closed-loop clients on etcd: what `flotilla bench kv` is for Flotilla. One
// row of one operation; prints one JSON object with the same names.
//
// Every request goes to the leader, and clients share at most 16 connections:
// both are etcd's best shape. Gets are linearizable, etcd's default. Values are
// random bytes; keys are uniform over -keys.
//
// With -attempt, members may die: each client knows all three, gives an attempt
// that long and then sends the request anew; its latency counts from the first.
package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"flag"
	"fmt"
	"io/ioutil"
	"math/rand"
	"os"
	"path/filepath"
	"sort"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"go.etcd.io/etcd/clientv3"
	"go.uber.org/zap"
)

const (
	connsMax    = 16
	fillClients = 64
	opTimeout   = 30 * time.Second
	ticksPerS   = 100 // of /proc/PID/stat
)

// Phases of a row.
const (
	warming = iota
	measuring
	over
)

var (
	dir     = flag.String("dir", "", "of etcd.sh: certificates and pids")
	port    = flag.Int("port", 0, "of the first member")
	op      = flag.String("op", "put", "put, get; fill: put every key once, unmeasured")
	size    = flag.Int("size", 100, "bytes of a value")
	clients = flag.Int("clients", 1, "outstanding requests")
	seconds = flag.Int("seconds", 5, "measured")
	warm    = flag.Int("warm", 1, "seconds before measuring")
	keys    = flag.Int("keys", 10000, "different keys")
	attempt = flag.Duration("attempt", 0, "patience with one attempt; 0: one attempt, at the leader")
)

func check(what string, err error) {
	if err != nil {
		fmt.Fprintf(os.Stderr, "etcd_load: %s: %v\n", what, err)
		os.Exit(1)
	}
}

func tlsConfig() *tls.Config {
	at := filepath.Join(*dir, "tls")
	cert, err := tls.LoadX509KeyPair(at+"/client.crt", at+"/client.key")
	check("certificate", err)
	ca, err := ioutil.ReadFile(at + "/ca.crt")
	check("certificate", err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	return &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool}
}

func endpoint(member int) string {
	return fmt.Sprintf("https://127.0.0.1:%d", *port+member)
}

func dial(to ...string) *clientv3.Client {
	quiet := zap.NewProductionConfig()
	quiet.Level = zap.NewAtomicLevelAt(zap.FatalLevel)
	c, err := clientv3.New(clientv3.Config{Endpoints: to, TLS: tlsConfig(),
		DialTimeout: 5 * time.Second, LogConfig: &quiet})
	check("connecting to "+strings.Join(to, ","), err)
	return c
}

func leader() string {
	for member := 0; member < 3; member++ {
		c := dial(endpoint(member))
		status, err := c.Status(context.Background(), endpoint(member))
		check("status", err)
		c.Close()
		if status.Leader == status.Header.MemberId {
			return endpoint(member)
		}
	}
	check("status", fmt.Errorf("no member leads"))
	return ""
}

func key(number int) string { return fmt.Sprintf("bench/%d/%08d", *size, number) }

func put(c *clientv3.Client, number int, value string) error {
	patience := opTimeout
	if *attempt > 0 {
		patience = *attempt
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	_, err := c.Put(ctx, key(number), value)
	return err
}

func putPatiently(c *clientv3.Client, number int, value string) error {
	for end := time.Now().Add(opTimeout); ; time.Sleep(5 * time.Millisecond) {
		err := put(c, number, value)
		if err == nil || *attempt == 0 || time.Now().After(end) {
			return err
		}
	}
}

func get(c *clientv3.Client, number int) error {
	ctx, cancel := context.WithTimeout(context.Background(), opTimeout)
	defer cancel()
	r, err := c.Get(ctx, key(number))
	if err == nil && (len(r.Kvs) != 1 || len(r.Kvs[0].Value) != *size) {
		err = fmt.Errorf("get did not bring the value of %s", key(number))
	}
	return err
}

// fill puts every key that is to be read, unless an earlier row did.
func fill(c *clientv3.Client, value string) {
	r, err := c.Get(context.Background(), fmt.Sprintf("bench/%d/", *size),
		clientv3.WithPrefix(), clientv3.WithCountOnly())
	check("counting keys", err)
	if r.Count >= int64(*keys) {
		return
	}
	var next int64 = -1
	var all sync.WaitGroup
	for i := 0; i < fillClients; i++ {
		all.Add(1)
		go func() {
			defer all.Done()
			for k := atomic.AddInt64(&next, 1); k < int64(*keys); k = atomic.AddInt64(&next, 1) {
				check("put", put(c, int(k), value))
			}
		}()
	}
	all.Wait()
}

func serversCPU() (s float64) {
	for i := 1; i <= 3; i++ {
		pid, err := ioutil.ReadFile(fmt.Sprintf("%s/n%d.pid", *dir, i))
		check("pid", err)
		stat, err := ioutil.ReadFile("/proc/" + strings.TrimSpace(string(pid)) + "/stat")
		if err != nil && *attempt > 0 {
			continue // killed
		}
		check("pid", err)
		fields := strings.Fields(string(stat[strings.LastIndexByte(string(stat), ')')+2:]))
		user, _ := strconv.ParseFloat(fields[11], 64)
		system, _ := strconv.ParseFloat(fields[12], 64)
		s += (user + system) / ticksPerS
	}
	return
}

// client runs one operation after the other, and returns the latencies of those
// that began and ended while measuring, in milliseconds.
func client(c *clientv3.Client, rng *rand.Rand, value string, phase, errors *int64) (took []float64) {
	for {
		at := atomic.LoadInt64(phase)
		if at == over {
			return
		}
		number, began := rng.Intn(*keys), time.Now()
		var err error
		if *op == "get" {
			err = get(c, number)
		} else {
			err = putPatiently(c, number, value)
		}
		if err != nil {
			atomic.AddInt64(errors, 1)
		} else if at == measuring && atomic.LoadInt64(phase) == measuring {
			took = append(took, float64(time.Since(began).Microseconds())/1000)
		}
	}
}

func main() {
	flag.Parse()
	bytes := make([]byte, *size)
	rand.New(rand.NewSource(time.Now().UnixNano())).Read(bytes)
	value := string(bytes)

	to := []string{endpoint(0), endpoint(1), endpoint(2)}
	if *attempt == 0 {
		to = []string{leader()}
	}
	conns := make([]*clientv3.Client, connsMax)
	for i := range conns {
		conns[i] = dial(to...)
	}
	if *op == "get" || *op == "fill" {
		fill(conns[0], value)
	}
	if *op == "fill" {
		return
	}

	var phase, errors int64
	var all sync.WaitGroup
	tooks := make([][]float64, *clients)
	for i := range tooks {
		all.Add(1)
		go func(i int) {
			defer all.Done()
			rng := rand.New(rand.NewSource(time.Now().UnixNano() + int64(i)))
			tooks[i] = client(conns[i%connsMax], rng, value, &phase, &errors)
		}(i)
	}
	time.Sleep(time.Duration(*warm) * time.Second)
	cpu, began := serversCPU(), time.Now()
	atomic.StoreInt64(&phase, measuring)
	time.Sleep(time.Duration(*seconds) * time.Second)
	atomic.StoreInt64(&phase, over)
	elapsed := time.Since(began).Seconds()
	cpu = serversCPU() - cpu
	all.Wait()

	var took []float64
	for _, t := range tooks {
		took = append(took, t...)
	}
	if len(took) == 0 {
		check(*op, fmt.Errorf("no operation succeeded"))
	}
	sort.Float64s(took)
	at := func(fraction float64) float64 { return took[int(fraction*float64(len(took)-1))] }
	row, err := json.Marshal(map[string]interface{}{
		"op": *op, "size": *size, "clients": *clients, "errors": errors,
		"ops_per_s": float64(len(took)) / elapsed,
		"p50_ms":    at(0.5), "p99_ms": at(0.99), "max_ms": at(1),
		"server_cpu_s_per_1000": cpu * 1000 / float64(len(took)),
	})
	check("printing", err)
	fmt.Println(string(row))
}
