// A program that shares an outbox table and a topic with the project under test, and no code.
//
// It does what the services written in Go do: it lets its ORM make and alter the table when it starts, writes events in
// transactions, relays them to the topic, and consumes them. Its reader is strict: a field that it does not know ends it.
//
//	gopeer migrate | write FIRST COUNT KEYS FILLER | relay | consume COUNT
//
// The environment says where: DSN, TABLE, SERVICE, KAFKA, TOPIC, GROUP.
package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"syscall"
	"time"
	_ "time/tzdata"

	"github.com/segmentio/kafka-go"
	"gorm.io/driver/mysql"
	"gorm.io/gorm"
	"gorm.io/gorm/clause"
	"gorm.io/gorm/logger"
)

const eventType = "shared.step"

// Message is a row. Nothing here states a default, so the ORM takes away those that the table has.
type Message struct {
	ID          int64      `gorm:"column:id;primaryKey;autoIncrement"`
	BizType     string     `gorm:"column:biz_type;type:varchar(64);not null"`
	ServiceName string     `gorm:"column:service_name;type:varchar(64);not null"`
	Topic       string     `gorm:"column:topic;type:varchar(128);not null"`
	MessageKey  string     `gorm:"column:message_key;type:varchar(128);not null"`
	Payload     string     `gorm:"column:payload;type:longtext;not null"`
	Status      string     `gorm:"column:status;type:varchar(32);not null;index:idx_status_due,priority:1"`
	RetryCount  int        `gorm:"column:retry_count;type:int;not null"`
	MaxRetry    int        `gorm:"column:max_retry;type:int;not null"`
	NextRetryAt *time.Time `gorm:"column:next_retry_at;type:datetime(3);index:idx_status_due,priority:2"`
	LastError   *string    `gorm:"column:last_error;type:text"`
	PublishedAt *time.Time `gorm:"column:published_at;type:datetime(3)"`
	ConsumedAt  *time.Time `gorm:"column:consumed_at;type:datetime(3)"`
	CreatedAt   time.Time  `gorm:"column:created_at;type:datetime(3)"`
	UpdatedAt   time.Time  `gorm:"column:updated_at;type:datetime(3)"`
}

func (Message) TableName() string { return os.Getenv("TABLE") }

// Stored is what the column payload holds.
type Stored struct {
	EventID      string          `json:"event_id"`
	EventType    string          `json:"event_type"`
	EventVersion string          `json:"event_version"`
	AggregateID  string          `json:"aggregate_id"`
	Payload      json.RawMessage `json:"payload"`
}

// Record is the value of a record on the topic.
type Record struct {
	OutboxID     int64           `json:"outbox_id"`
	EventID      string          `json:"event_id"`
	EventType    string          `json:"event_type"`
	EventVersion string          `json:"event_version"`
	ServiceName  string          `json:"service_name"`
	AggregateID  string          `json:"aggregate_id"`
	Payload      json.RawMessage `json:"payload"`
}

// Step is the business payload. A payload of null leaves all of it empty, without a word.
type Step struct {
	Key    string `json:"key"`
	N      int    `json:"n"`
	Filler string `json:"filler"`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	db, err := gorm.Open(mysql.Open(os.Getenv("DSN")), &gorm.Config{Logger: logger.Default.LogMode(logger.Error)})
	check(err)
	switch os.Args[1] {
	case "migrate":
		check(db.AutoMigrate(&Message{}))
	case "write":
		write(db, number(2), number(3), number(4), number(5))
	case "relay":
		relay(ctx, db)
	case "consume":
		consume(ctx, db, number(2))
	default:
		log.Fatalf("unknown command %q", os.Args[1])
	}
	fmt.Println("done")
}

func write(db *gorm.DB, first, count, keys, filler int) {
	for n := first; n < first+count; n++ {
		key := fmt.Sprintf("k%d", n%keys)
		payload, err := json.Marshal(Step{Key: key, N: n, Filler: strings.Repeat("x", filler)})
		check(err)
		stored, err := json.Marshal(Stored{fmt.Sprintf("go-%d", n), eventType, "v1", key, payload})
		check(err)
		now := time.Now()
		check(db.Transaction(func(tx *gorm.DB) error {
			return tx.Create(&Message{
				BizType: eventType, ServiceName: os.Getenv("SERVICE"), Topic: os.Getenv("TOPIC"), MessageKey: key,
				Payload: string(stored), Status: "pending", MaxRetry: 20, NextRetryAt: &now,
			}).Error
		}))
	}
}

func relay(ctx context.Context, db *gorm.DB) {
	writer := &kafka.Writer{
		Addr: kafka.TCP(os.Getenv("KAFKA")), Topic: os.Getenv("TOPIC"), RequiredAcks: kafka.RequireAll,
		// The partitioner of Kafka's own client, and of the project: a key has one partition whoever sends it.
		Balancer: kafka.Murmur2Balancer{Consistent: true}, BatchTimeout: 5 * time.Millisecond, BatchBytes: 1 << 20,
	}
	defer writer.Close()
	for ctx.Err() == nil {
		var due []Message
		check(db.Where("status = ? AND (next_retry_at IS NULL OR next_retry_at <= ?)", "pending", time.Now()).
			Order("id").Limit(100).Find(&due).Error)
		if len(due) == 0 {
			time.Sleep(20 * time.Millisecond)
			continue
		}
		var records []kafka.Message
		var ids []int64
		for _, row := range due {
			var stored Stored
			check(strict([]byte(row.Payload), &stored))
			value, err := json.Marshal(Record{
				row.ID, stored.EventID, row.BizType, stored.EventVersion, row.ServiceName, stored.AggregateID, stored.Payload,
			})
			check(err)
			records = append(records, kafka.Message{Key: []byte(row.MessageKey), Value: value})
			ids = append(ids, row.ID)
		}
		check(writer.WriteMessages(context.Background(), records...))
		check(db.Model(&Message{}).Where("id IN ? AND status = ?", ids, "pending").
			Updates(map[string]interface{}{"status": "published", "published_at": time.Now()}).Error)
	}
}

func consume(ctx context.Context, db *gorm.DB, count int) {
	reader := kafka.NewReader(kafka.ReaderConfig{
		Brokers: strings.Split(os.Getenv("KAFKA"), ","), Topic: os.Getenv("TOPIC"), GroupID: os.Getenv("GROUP"),
		StartOffset: kafka.FirstOffset, MaxWait: 50 * time.Millisecond, MaxBytes: 10 << 20,
		ErrorLogger: kafka.LoggerFunc(log.Printf),
	})
	defer reader.Close()
	for done := 0; done < count; {
		message, err := reader.FetchMessage(ctx)
		if errors.Is(err, context.Canceled) {
			return
		}
		check(err)
		var record Record
		check(strict(message.Value, &record))
		took := false
		check(db.Transaction(func(tx *gorm.DB) error {
			took, err = handle(tx, record)
			return err
		}))
		check(reader.CommitMessages(ctx, message))
		if took {
			done++
		}
	}
}

// handle writes the effect and marks the row, unless that was done before; it works with what the record says.
func handle(tx *gorm.DB, record Record) (bool, error) {
	var row Message
	if err := tx.Clauses(clause.Locking{Strength: "UPDATE"}).First(&row, record.OutboxID).Error; err != nil {
		return false, err
	}
	if row.Status == "consumed" || row.Status == "dead" {
		return false, nil
	}
	var step Step
	if err := strict(record.Payload, &step); err != nil {
		return false, err
	}
	err := tx.Exec("INSERT INTO shared_effects (outbox_id, message_key, n, filler_length, made_by) VALUES (?, ?, ?, ?, 'go')",
		record.OutboxID, row.MessageKey, step.N, len(step.Filler)).Error
	if err != nil {
		return false, err
	}
	done := map[string]interface{}{"status": "consumed", "consumed_at": time.Now()}
	return true, tx.Model(&row).Updates(done).Error
}

func strict(text []byte, into interface{}) error {
	decoder := json.NewDecoder(bytes.NewReader(text))
	decoder.DisallowUnknownFields()
	return decoder.Decode(into)
}

func number(at int) int {
	found, err := strconv.Atoi(os.Args[at])
	check(err)
	return found
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
