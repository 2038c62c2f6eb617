// Command clients reads a namespace's events as programs written with client-go do, and prints one line of JSON for each.
//
// It is not a test: tests/real_clients.rs starts it and judges what it printed. Whatever client-go complains about goes to stderr.
package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/dynamic/dynamicinformer"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/tools/clientcmd"
	toolswatch "k8s.io/client-go/tools/watch"
)

var resource = schema.GroupVersionResource{Group: "audit.k8s.io", Version: "v1", Resource: "namespacedevents"}

// Those that come back have watches of this many seconds, several in a scenario. More than client-go's "very short watch", which is one.
var shortWatch int64 = 5

// They come back late, so that there is something to resume: kube-apiserver sends a batch every second.
const away = 2 * time.Second

// comeBack makes a short watch of what is asked for, and a late one of what resumes.
func comeBack(options *metav1.ListOptions) {
	options.TimeoutSeconds = &shortWatch
	if options.ResourceVersion != "" && options.ResourceVersion != "0" {
		time.Sleep(away)
	}
}

func main() {
	if len(os.Args) != 4 {
		fmt.Fprintln(os.Stderr, "usage: clients dynamic|retrywatcher|informer KUBECONFIG NAMESPACE")
		os.Exit(2)
	}
	context, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(context, os.Args[1], os.Args[2], os.Args[3]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

func run(ctx context.Context, mode, kubeconfig, namespace string) error {
	config, err := clientcmd.BuildConfigFromFlags("", kubeconfig)
	if err != nil {
		return err
	}
	// The audit log tells by it who asked for what.
	config.UserAgent = "go-" + mode
	client, err := dynamic.NewForConfig(config)
	if err != nil {
		return err
	}
	switch mode {
	case "dynamic":
		return readOnce(ctx, client.Resource(resource).Namespace(namespace))
	case "retrywatcher":
		return retry(ctx, client.Resource(resource).Namespace(namespace))
	case "informer":
		return inform(ctx, client, namespace)
	default:
		return fmt.Errorf("no mode %q", mode)
	}
}

// readOnce is a plain Watch: it ends when the server ends it.
func readOnce(ctx context.Context, events dynamic.ResourceInterface) error {
	watcher, err := events.Watch(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	return printAll(watcher)
}

// retry is a RetryWatcher, which needs a resourceVersion to begin at. Where nothing can be listed, the bookmark of a watch has one.
func retry(ctx context.Context, events dynamic.ResourceInterface) error {
	begin, err := place(ctx, events)
	if err != nil {
		return err
	}
	open := func(ctx context.Context, options metav1.ListOptions) (watch.Interface, error) {
		comeBack(&options)
		return events.Watch(ctx, options)
	}
	watcher, err := toolswatch.NewRetryWatcherWithContext(ctx, begin, &cache.ListWatch{WatchFuncWithContext: open})
	if err != nil {
		return err
	}
	return printAll(watcher)
}

func place(ctx context.Context, events dynamic.ResourceInterface) (string, error) {
	yes := true
	watcher, err := events.Watch(ctx, metav1.ListOptions{
		SendInitialEvents:    &yes,
		ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan,
		AllowWatchBookmarks:  true,
	})
	if err != nil {
		return "", err
	}
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		if object, ok := event.Object.(*unstructured.Unstructured); ok && event.Type == watch.Bookmark {
			return object.GetResourceVersion(), nil
		}
	}
	return "", errors.New("the watch ended without a bookmark")
}

func printAll(watcher watch.Interface) error {
	defer watcher.Stop()
	for event := range watcher.ResultChan() {
		object, ok := event.Object.(*unstructured.Unstructured)
		if !ok {
			return fmt.Errorf("%s: %v", event.Type, event.Object)
		}
		printEvent(string(event.Type), object)
	}
	return nil
}

// inform is an informer, as controllers have it. Whether it begins with a list or a streaming list is client-go's choice.
func inform(ctx context.Context, client dynamic.Interface, namespace string) error {
	informer := dynamicinformer.NewFilteredDynamicInformer(client, resource, namespace, 0, cache.Indexers{}, comeBack).Informer()
	// The same object a second time would be an update. There are none, and one that came would be a double.
	handlers := cache.ResourceEventHandlerFuncs{
		AddFunc:    func(object any) { printEvent("ADDED", object.(*unstructured.Unstructured)) },
		UpdateFunc: func(_, object any) { printEvent("MODIFIED", object.(*unstructured.Unstructured)) },
		DeleteFunc: func(object any) { fmt.Fprintln(os.Stderr, "deleted:", object) },
	}
	if _, err := informer.AddEventHandler(handlers); err != nil {
		return err
	}
	informer.RunWithContext(ctx)
	return nil
}

var stdout sync.Mutex

func printEvent(kind string, object *unstructured.Unstructured) {
	text := func(field string) string {
		value, _, _ := unstructured.NestedString(object.Object, field)
		return value
	}
	line, err := json.Marshal(map[string]string{
		"type": kind, "kind": object.GetKind(), "name": object.GetName(), "resourceVersion": object.GetResourceVersion(),
		"auditID": text("auditID"), "stage": text("stage"),
	})
	if err != nil {
		panic(err) // A map of strings.
	}
	stdout.Lock()
	defer stdout.Unlock()
	fmt.Println(string(line))
}
